"""GPU kernels in Triton. Importing this needs no Triton and no GPU; `int8_linear.py` says which kernel runs when."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

# `LLMINT8_BACKEND=triton` runs these kernels on CPU tensors, too, where Triton itself is interpreted or emulated.
_ON_CPU = os.environ.get("LLMINT8_BACKEND") == "triton"
_OLDEST = (7, 5)


def takes(x: Tensor) -> bool:
    """Whether these kernels run for tensors on the device of `x`."""
    return (x.is_cuda or (_ON_CPU and x.is_cpu)) and _runs_on(x.get_device() if x.device.type == "cuda" else None)


@functools.cache
def _runs_on(index: int | None) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    return index is None or bool(torch.version.hip) or torch.cuda.get_device_capability(index) >= _OLDEST
