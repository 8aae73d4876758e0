"""Kernels behind the operators of `llmint8.ops`; `backend.py` lists who runs what.

The code is in the folder `kernels/` beside this package, one folder a backend, and is installed as `llmint8.kernels.*`
(see setup.py). That folder has no `__init__.py`: a top-level package `kernels` would be taken for Hugging Face's
package of that name, which transformers looks for.
"""

import os

# The one place that reads the variable. `reference` leaves the Triton kernels out; `triton` runs them on CPU tensors,
# too, for tests in which Triton itself is interpreted or emulated, and leaves the native kernels out.
FORCED_BACKEND = os.environ.get("LLMINT8_BACKEND")

# In a source tree the folders are found where they are, so that one made later needs no new installation.
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if os.path.isfile(os.path.join(_ROOT, "setup.py")):
    __path__.append(os.path.join(_ROOT, "kernels"))
