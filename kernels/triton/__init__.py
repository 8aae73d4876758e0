"""GPU kernels in Triton. Importing this needs no Triton and no GPU; `int8_linear.py` says which kernel runs when.

`LLMINT8_BACKEND=reference` leaves them out. `LLMINT8_BACKEND=triton` runs them on CPU tensors, too, for tests in which
Triton itself is interpreted or emulated.
"""

import functools
import os
import warnings

import torch
from torch import Tensor

_BACKEND = os.environ.get("LLMINT8_BACKEND")
_OLDEST = (7, 5)


def takes(x: Tensor) -> bool:
    """Whether these kernels run for tensors on the device of `x`."""
    if x.is_cuda:
        return _BACKEND != "reference" and _runs_on(x.get_device() if x.device.type == "cuda" else None)
    return _BACKEND == "triton" and x.is_cpu


@functools.cache
def _runs_on(index: int | None) -> bool:
    """Whether Triton works here; index None is an emulated GPU."""
    if index is not None and not torch.version.hip and torch.cuda.get_device_capability(index) < _OLDEST:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # needs a C compiler
    except Exception as error:  # of many kinds
        warnings.warn(
            "llmint8 runs on PyTorch's operators, much slower than its own kernels, since Triton does not work here: "
            f"{error!r}. LLMINT8_BACKEND=reference says that this is meant",
            stacklevel=2,
        )
        return False
    return True
