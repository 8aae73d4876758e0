"""What the operators ask of their arguments."""

from contextvars import ContextVar

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Set while a model on the meta device is followed as if it ran on a CPU, to see what memory that takes.
meta_is_cpu: ContextVar[bool] = ContextVar("meta_is_cpu", default=False)


def is_on_cpu(x: Tensor) -> bool:
    """Whether a tensor is on a CPU, or on the meta device and stands for one that is."""
    return x.is_cpu or (x.is_meta and meta_is_cpu.get())


def check_device(x: Tensor, *others: Tensor | None) -> None:
    """Refuses tensors on another device than the first one.

    Raises:
        RuntimeError: One is.
    """
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"all tensors must be on one device, got {x.device} and {other.device}")


def check_weight(weight: Tensor, weight_scale: Tensor) -> None:
    """Refuses what is no int8 weight with its scales.

    Args:
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].

    Raises:
        RuntimeError: They are on different devices.
        TypeError: A dtype is another one.
        ValueError: A shape is another one.
    """
    check_device(weight, weight_scale)
    if weight.dtype != torch.int8 or weight_scale.dtype != torch.float32:
        raise TypeError(f"weight must be int8 and weight_scale float32, got {weight.dtype} and {weight_scale.dtype}")
    if weight.dim() != 2 or weight_scale.shape != (weight.shape[0], 1):
        raise ValueError(
            f"weight must be [N, K] and weight_scale [N, 1], got {list(weight.shape)} and {list(weight_scale.shape)}"
        )


def check_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    """Refuses what `int8_linear` cannot multiply.

    Args:
        x: fp16, bf16 or fp32 [..., K].
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: Floating point [N].

    Raises:
        RuntimeError: They are on different devices.
        TypeError: A dtype is another one.
        ValueError: A shape is another one.
    """
    check_device(x, weight, weight_scale, bias)
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"the input must be float16, bfloat16 or float32, got {x.dtype}")
    check_weight(weight, weight_scale)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"the input must be [..., {weight.shape[1]}] for a weight {list(weight.shape)}, got {list(x.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")


def check_finite(weight: Tensor, name: str) -> None:
    """Refuses a weight that has no int8 form; one on the meta device passes.

    Args:
        weight: Floating point, any shape.
        name: What the message calls it.

    Raises:
        ValueError: The weight has a NaN or Inf.
    """
    if weight.is_meta or weight.numel() == 0:
        return
    low, high = torch.aminmax(weight)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError(
            f"{name} has a NaN or Inf, so it has no int8 form; the checkpoint is damaged, or its values overflow their "
            "dtype"
        )
