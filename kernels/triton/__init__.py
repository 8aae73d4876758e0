"""GPU kernels in Triton. Importing this needs no Triton and no GPU; `int8_linear.py` says which kernel runs when."""

import functools
import warnings

import torch

_OLDEST = (7, 5)


def runs_on(index: int | None) -> bool:
    """Whether Triton works on a GPU; if not, a warning says why, once.

    Args:
        index: The number of the GPU; None for an emulated one.
    """
    return why_not_on(index) is None


@functools.cache
def why_not_on(index: int | None) -> str | None:
    """Returns why the kernels do not run on a GPU; None if they do.

    Args:
        index: The number of the GPU; None for an emulated one.
    """
    if index is not None and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability(index)
        if (major, minor) < _OLDEST:
            return f"the kernels need compute capability 7.5, this GPU has {major}.{minor}"
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # needs a C compiler
    except Exception as error:  # of many kinds
        warnings.warn(
            "llmint8 runs on PyTorch's operators, much slower than its own kernels, since Triton does not work here: "
            f"{error!r}. LLMINT8_BACKEND=reference says that this is meant",
            stacklevel=2,
        )
        return repr(error)
    return None
