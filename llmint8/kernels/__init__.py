"""Kernels behind the operators of `llmint8.ops`.

The code is in the folder `kernels/` beside this package, one folder a backend, and is installed as `llmint8.kernels.*`
(see setup.py). That folder has no `__init__.py`: a top-level package `kernels` would be taken for Hugging Face's package
of that name, which transformers looks for.
"""

import os

# In a source tree the folders are found where they are, so that one made later needs no new installation.
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if os.path.isfile(os.path.join(_ROOT, "setup.py")):
    __path__.append(os.path.join(_ROOT, "kernels"))
