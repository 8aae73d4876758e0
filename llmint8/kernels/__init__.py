"""Kernels behind the operators of `llmint8.ops`.

The code is in the folder `kernels/` beside this package, one folder a backend, and is installed as `llmint8.kernels.*`
(see `packages` in pyproject.toml). That folder has no `__init__.py`: a top-level package `kernels` would be taken for
Hugging Face's package of that name, which transformers looks for.
`backend.py` is the list of them.
"""

import os

# The one place that reads the variable. `reference` leaves the Triton kernels out; `triton` runs them on CPU tensors,
# too, for tests in which Triton itself is interpreted or emulated, and leaves the native kernels out.
FORCED_BACKEND = os.environ.get("LLMINT8_BACKEND")
