"""`int8_linear`: an int8 weight times an input, outlier columns in floating point; and its gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.config import Int8Config
from llmint8.kernels.reference import int8_linear as reference
from llmint8.ops.checks import check_linear
from llmint8.ops.registry import Gradient, define
from llmint8.outliers import OutlierRule

RULE_SCHEMA = "str mode, float threshold, int budget, bool relative, bool symmetric"


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    outlier_columns: Tensor | None = None,
    rule: OutlierRule | None = None,
) -> Tensor:
    """Applies an int8 weight to an input, outlier columns in floating point (LLM.int8(), equation 8).

    Few rows (`llmint8.kernels.backend.decode_rows`) are not quantized at all: reading the weight is what costs then,
    and `y = x . (s_w q_w)` is as cheap and more accurate.

    Args:
        x: fp16, bf16 or fp32 [..., K], any strides.
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: Floating point [N].
        outlier_columns: int64, indices in [0, K), in mode `"static"`.
        rule: The treatment of outlier columns; that of `Int8Config()` if None.

    Returns:
        [..., N], dtype of `x`. Differentiable in `x` and `bias`; the gradient to `x` goes through the dequantized
        weight and leaves the rounding of activations out.

    Raises:
        TypeError: A dtype is not one of the above.
        ValueError: The shapes do not fit, or the mode is unknown.
    """
    if rule is None:
        rule = Int8Config().rule(weight.shape[-1])
    run = _run if _needs_no_dispatcher(x) else _call
    return run(x, weight, weight_scale, bias, outlier_columns, *rule)


def _needs_no_dispatcher(x: Tensor) -> bool:
    """Whether only kernels would see a call: decoding on a GPU waits for the host, half of the time for dispatching."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cuda
        and not torch.is_grad_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def _on_rows(
    kernel: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    outlier_columns: Tensor | None,
    *rule: Any,
) -> Tensor:
    """Checks any input, and gives a kernel the rows of it, [M, K], if there are some."""
    check_linear(x, weight, weight_scale, bias)
    shape = (*x.shape[:-1], weight.shape[0])
    if 0 in shape or weight.shape[1] == 0:  # nothing to multiply: the bias, or nothing at all
        y = x.new_zeros(shape)
        return y if bias is None else y + bias.to(y.dtype)
    rows = x.reshape(-1, x.shape[-1])
    return kernel(rows, weight, weight_scale, bias, outlier_columns, OutlierRule(*rule)).view(shape)


def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    check_linear(x, weight, weight_scale, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, weight_scale, bias, *_ = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, weight_scale = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _int8_linear_grad_input.call(grad, weight, weight_scale)
    if ctx.needs_input_grad[3]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).float().sum(dim=0).to(ctx.bias_dtype)
    return grad_x, None, None, grad_bias, *[None] * (1 + len(OutlierRule._fields))


def _on_rows_of_gradient(kernel: Callable[..., Tensor], grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return kernel(grad.reshape(-1, grad.shape[-1]), weight, weight_scale).view(*grad.shape[:-1], weight.shape[1])


def _fake_gradient(grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


# Functions of other modules are looked up when they are called: importing those modules may be what imports this one.
def _fallback(*args: Any) -> Tensor:
    return reference.int8_linear(*args)


def _gradient_fallback(grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return functional.weight_only_grad_input(grad, weight, weight_scale)


_int8_linear = define(
    "int8_linear",
    "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? outlier_columns, "
    + RULE_SCHEMA
    + ") -> Tensor",
    fallback=_fallback,
    fake=_fake,
    around=_on_rows,
    gradient=Gradient(_save, _backward),
    one_by_one=True,
)
_call, _run = _int8_linear.call, _int8_linear.run

_int8_linear_grad_input = define(
    "int8_linear_grad_input",
    "(Tensor grad, Tensor weight, Tensor weight_scale) -> Tensor",
    fallback=_gradient_fallback,
    fake=_fake_gradient,
    around=_on_rows_of_gradient,
    one_by_one=True,
)
