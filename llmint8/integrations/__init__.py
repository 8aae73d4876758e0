"""What connects llmint8 to other libraries: one folder or file a library, named after it."""
