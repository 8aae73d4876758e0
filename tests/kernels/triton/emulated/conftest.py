"""The machine's own code of the Triton kernels, run by an emulator of PTX on CPU tensors, which checks every address.

The emulator is not part of this repository: `ptxemu` must be importable, as it is where `test_separately.py` finds it.
"""

import importlib.util
import os

if importlib.util.find_spec("ptxemu") is None or os.environ.get("LLMINT8_BACKEND") != "triton":
    collect_ignore_glob = ["test_*.py"]
