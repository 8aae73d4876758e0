"""`float_linear`: a float weight times a few rows, for the head of a model."""

import torch
from torch import Tensor

from llmint8.ops.checks import check_device
from llmint8.ops.registry import define


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies a float weight, as `torch.nn.functional.linear` does, for inference: it has no gradient.

    Args:
        x: Floating point [..., K].
        weight: [N, K], dtype of `x`.
        bias: [N] or None, dtype of `x`.

    Returns:
        [..., N], dtype of `x`.
    """
    return _float_linear.call(x, weight, bias)


def _fallback(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check_device(x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_float_linear = define(
    "float_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", fallback=_fallback, fake=_fake
)
