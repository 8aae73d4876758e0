"""Kernels behind the operators of `llmint8.ops`.

The code is in the folder `kernels/` beside this package, one folder a backend, and is installed as `llmint8.kernels.*`
(see `packages` in pyproject.toml). That folder has no `__init__.py`: a top-level package `kernels` would be taken for
Hugging Face's package of that name, which transformers looks for.
"""
