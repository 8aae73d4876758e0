"""Kernels behind the operators of `llmint8.ops`: one folder a backend, one file an operator.

This folder is the package `llmint8.kernels`. It must not be taken for the unrelated package `kernels` that
transformers looks for, which happens when Python starts in the root of the repository.
"""

if __name__ != "llmint8.kernels":
    raise ModuleNotFoundError(f"this folder is the package llmint8.kernels, not {__name__!r}", name=__name__)
