"""What connects llmint8 to other libraries: one folder or file a library, named after it.

`registration.py` and `patches.py` import none of them: `import llmint8` runs these two.
"""
