"""The operators `torch.ops.llmint8.*`: schema, shapes under tracing, gradients, and the one seam to the kernels.

A backend is a folder of `kernels/`. Native ones bind themselves to their dispatch key when they are loaded; Triton's
serve the GPUs they take, and PyTorch serves every other device. Everything data-dependent happens inside an operator,
so a compiled graph sees one opaque node per layer.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from llmint8 import functional
from llmint8.kernels import triton
from llmint8.kernels.cpu import int8_linear as cpu
from llmint8.kernels.cpu import native
from llmint8.kernels.reference import int8_linear as reference

INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Set while a model on the meta device is followed as if it ran on a CPU, to see what memory that takes.
meta_is_cpu: ContextVar[bool] = ContextVar("meta_is_cpu", default=False)

_library = torch.library.Library("llmint8", "DEF")
_INT8_LINEAR = (
    "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? outlier_columns, str mode, "
    "float threshold, int budget, bool relative, bool symmetric) -> Tensor"
)
_library.define(f"int8_linear{_INT8_LINEAR}", tags=(torch.Tag.pt2_compliant_tag,))
_ATTENTION = "(Tensor query, Tensor key, Tensor value, float scale, bool causal) -> Tensor"
_library.define(f"attention{_ATTENTION}", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(f"attention_reference{_ATTENTION}", tags=(torch.Tag.pt2_compliant_tag,))
_FLOAT_LINEAR = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
_library.define(f"float_linear{_FLOAT_LINEAR}", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(f"float_linear_reference{_FLOAT_LINEAR}", tags=(torch.Tag.pt2_compliant_tag,))
# For a backend, to hand over what it does not take.
_library.define(f"int8_linear_reference{_INT8_LINEAR}", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    "int8_linear_grad_input(Tensor grad, Tensor weight, Tensor weight_scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("quantize_weight(Tensor weight) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_library.define("quantize_weight_reference(Tensor weight) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    "dequantize_weight(Tensor weight, Tensor weight_scale, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    outlier_columns: Tensor | None = None,
    mode: str = "budget",
    threshold: float = 0.0,
    budget: int = 32,
    relative: bool = True,
    symmetric: bool = False,
) -> Tensor:
    """Applies an int8 weight to an input, outlier columns in floating point (LLM.int8(), equation 8).

    Few rows (8 or less on a CPU, 32 on a GPU) are not quantized at all: reading the weight is what costs then, and
    `y = x . (s_w q_w)` is as cheap and more accurate.

    Args:
        x: fp16, bf16 or fp32 [..., K], any strides.
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        bias: Floating point [N].
        outlier_columns: int64, indices in [0, K), in mode `"static"`.
        mode: `"threshold"`, `"budget"`, `"static"` or `"none"`; this and the rest as in `Int8Config`.
        threshold: Smallest score of an outlier column, in the modes `"threshold"` and `"budget"`.
        budget: Largest number of outlier columns, in mode `"budget"`.
        relative: Scores a feature relative to the root mean square of its row.
        symmetric: Quantizes activations without a zero point.

    Returns:
        [..., N], dtype of `x`. Differentiable in `x` and `bias`; the gradient to `x` goes through the dequantized
        weight and leaves the rounding of activations out.

    Raises:
        TypeError: A dtype is not one of the above.
        ValueError: The shapes do not fit, or `mode` is unknown.
    """
    run = _int8_linear_reference if _needs_no_dispatcher(x) else _int8_linear_op
    return run(x, weight, weight_scale, bias, outlier_columns, mode, threshold, budget, relative, symmetric)


def quantize_weight(weight: Tensor, name: str = "the weight") -> tuple[Tensor, Tensor]:
    """Quantizes a weight vector-wise, one scale per output feature (section 3.1).

    Args:
        weight: Floating point [N, K].
        name: For the message of an error.

    Returns:
        int8 codes [N, K] and scales, fp32 [N, 1].

    Raises:
        TypeError: The weight is not floating point.
        ValueError: It is not a matrix, or has a NaN or Inf.
    """
    if not weight.is_floating_point():
        raise TypeError(f"only a floating-point weight can be quantized, got {weight.dtype}")
    codes, scale = torch.ops.llmint8.quantize_weight(weight)
    check_finite(scale, f"{name} {list(weight.shape)}")  # a row with a NaN or Inf has no finite scale
    return codes, scale


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False) -> Tensor:
    """Returns `softmax(scale * query . key) . value`, for inference: it has no gradient.

    Args:
        query: fp16, bf16 or fp32 [batch, heads, M, depth].
        key: [batch, key_heads, S, depth], dtype of `query`; each key head serves heads / key_heads heads in a row.
        value: As `key`.
        scale: Of the scores.
        causal: Row m sees keys 0 to S - M + m: the queries are of the last tokens. M must be at most S.

    Returns:
        [batch, M, heads, depth], dtype of `query`; sums and softmax are fp32.

    Raises:
        ValueError: Causal, with M greater than S.
    """
    return torch.ops.llmint8.attention(query, key, value, scale, causal)


def causal_mask(query: Tensor, keys: int) -> Tensor:
    """Returns which keys each of the last tokens sees: those up to its own.

    Args:
        query: [..., M, depth].
        keys: S, at least M.

    Returns:
        bool [M, S].
    """
    queries = query.shape[-2]
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies a float weight, as `torch.nn.functional.linear` does, for inference: it has no gradient.

    Args:
        x: Floating point [..., K].
        weight: [N, K], dtype of `x`.
        bias: [N] or None, dtype of `x`.

    Returns:
        [..., N], dtype of `x`.
    """
    return torch.ops.llmint8.float_linear(x, weight, bias)


def check_finite(weight: Tensor, name: str) -> None:
    """Refuses a weight that has no int8 form; one on the meta device passes.

    Args:
        weight: Floating point, any shape.
        name: For the message.

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


def dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the floating-point weight that int8 codes stand for.

    Args:
        weight: int8 [N, K].
        weight_scale: fp32 [N, 1].
        dtype: Of the result.
    """
    return torch.ops.llmint8.dequantize_weight(weight, weight_scale, dtype)


_int8_linear_op = torch.ops.llmint8.int8_linear.default


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


def _check(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    _check_device(x, weight, weight_scale, bias)
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"the input must be float16, bfloat16 or float32, got {x.dtype}")
    _check_weight(weight, weight_scale)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"the input must be [..., {weight.shape[1]}] for a weight {list(weight.shape)}, got {list(x.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")


def is_on_cpu(x: Tensor) -> bool:
    """Whether a tensor is on a CPU, or on the meta device and stands for one that is."""
    return x.is_cpu or (x.is_meta and meta_is_cpu.get())


def is_native(*args: Any) -> bool:
    """Whether the native kernels, which are loaded now, will get a call with these arguments."""
    lists = (arg if isinstance(arg, list | tuple) else (arg,) for arg in args)
    tensors = [arg for items in lists for arg in items if isinstance(arg, Tensor)]
    return all(t.device.type == "cpu" and t.layout == torch.strided for t in tensors) and native.load()


def _check_device(x: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"all tensors must be on one device, got {x.device} and {other.device}")


def _int8_linear_reference(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *settings: Any
) -> Tensor:
    """Checks any input and runs it on what has no dispatch key of its own: Triton or PyTorch."""
    _check(x, weight, weight_scale, bias)
    shape = (*x.shape[:-1], weight.shape[0])
    if 0 in shape or weight.shape[1] == 0:  # nothing to multiply: the bias, or nothing at all
        y = x.new_zeros(shape)
        return y if bias is None else y + bias.to(y.dtype)
    return _kernel(x)(x.reshape(-1, x.shape[-1]), weight, weight_scale, bias, *settings).view(shape)


def _kernel(x: Tensor) -> Callable[..., Tensor]:
    if triton.takes(x):
        from llmint8.kernels.triton.int8_linear import int8_linear

        return int8_linear
    return cpu.int8_linear if x.is_cpu else reference.int8_linear


def _int8_linear(x: Tensor, *args: Any) -> Tensor:
    """What runs until a backend has registered kernels for the device; on a CPU, the native one is loaded now."""
    if not triton.takes(x) and is_native(x, *args):  # on a GPU, each microsecond of the host counts
        return _int8_linear_op(x, *args)
    return _int8_linear_reference(x, *args)


_library.impl("int8_linear", _int8_linear, "CompositeExplicitAutograd")
_library.impl("int8_linear_reference", _int8_linear_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::int8_linear_reference", lib=_library)
@torch.library.register_fake("llmint8::int8_linear", lib=_library)
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    _check(x, weight, weight_scale, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _grad_input(grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    rows = grad.reshape(-1, grad.shape[-1])
    if triton.takes(grad):  # the reference's many small blocks would each be several launches
        result = rows @ _dequantize_weight(weight, weight_scale, grad.dtype)
    else:
        result = functional.weight_only_grad_input(rows, weight, weight_scale)
    return result.view(*grad.shape[:-1], weight.shape[1])


_library.impl("int8_linear_grad_input", _grad_input, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::int8_linear_grad_input", lib=_library)
def _(grad: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


def _quantize_weight_reference(weight: Tensor) -> tuple[Tensor, Tensor]:
    if weight.dim() != 2:
        raise ValueError(f"the weight must be [N, K], got {list(weight.shape)}")
    codes = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
    scale = weight.new_ones(weight.shape[0], 1, dtype=torch.float32)
    if weight.shape[1] == 0:
        return codes, scale
    for rows in functional.row_blocks(weight):
        codes[rows], scale[rows] = functional.quantize_rowwise(weight[rows])
    return codes, scale


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    if is_native(weight):
        return torch.ops.llmint8.quantize_weight(weight)
    if triton.takes(weight) and weight.dtype in INPUT_DTYPES and weight.dim() == 2 and weight.numel():
        from llmint8.kernels.triton.quantize_weight import quantize_weight

        return quantize_weight(weight)
    return _quantize_weight_reference(weight)


_library.impl("quantize_weight", _quantize_weight, "CompositeExplicitAutograd")
_library.impl("quantize_weight_reference", _quantize_weight_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::quantize_weight_reference", lib=_library)
@torch.library.register_fake("llmint8::quantize_weight", lib=_library)
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.new_empty(weight.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format), scale


def _check_weight(weight: Tensor, weight_scale: Tensor) -> None:
    _check_device(weight, weight_scale)
    if weight.dtype != torch.int8 or weight_scale.dtype != torch.float32:
        raise TypeError(f"weight must be int8 and weight_scale float32, got {weight.dtype} and {weight_scale.dtype}")
    if weight.dim() != 2 or weight_scale.shape != (weight.shape[0], 1):
        raise ValueError(
            f"weight must be [N, K] and weight_scale [N, 1], got {list(weight.shape)} and {list(weight_scale.shape)}"
        )


def _dequantize_weight(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    _check_weight(weight, weight_scale)
    if triton.takes(weight) and dtype in INPUT_DTYPES and weight.numel():
        from llmint8.kernels.triton.dequantize_weight import dequantize_weight

        return dequantize_weight(weight, weight_scale, dtype)
    result = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)
    for rows in functional.row_blocks(weight):
        result[rows] = functional.dequantize(weight[rows], weight_scale[rows], dtype=dtype)
    return result


_library.impl("dequantize_weight", _dequantize_weight, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::dequantize_weight", lib=_library)
def _(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    _check_weight(weight, weight_scale)
    return torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format)


def _attention_reference(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if causal and queries > keys:
        raise ValueError(f"causal attention needs a key for each query, got {keys} for {queries}")
    seen = causal_mask(query, keys) if causal and queries != keys else None
    y = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        is_causal=causal and seen is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return y.transpose(1, 2).contiguous()


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    if is_native(query, key, value):
        return torch.ops.llmint8.attention(query, key, value, scale, causal)
    return _attention_reference(query, key, value, scale, causal)


_library.impl("attention", _attention, "CompositeExplicitAutograd")
_library.impl("attention_reference", _attention_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::attention_reference", lib=_library)
@torch.library.register_fake("llmint8::attention", lib=_library)
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    _check_device(query, key, value)
    batch, heads, queries, depth = query.shape
    return query.new_empty((batch, queries, heads, depth))


def _float_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if is_native(x, weight, bias):
        return torch.ops.llmint8.float_linear(x, weight, bias)
    return _float_linear_reference(x, weight, bias)


_library.impl("float_linear", _float_linear, "CompositeExplicitAutograd")
_library.impl("float_linear_reference", _float_linear_reference, "CompositeExplicitAutograd")


@torch.library.register_fake("llmint8::float_linear_reference", lib=_library)
@torch.library.register_fake("llmint8::float_linear", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check_device(x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, weight_scale, bias, *_ = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, weight_scale = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.llmint8.int8_linear_grad_input(grad, weight, weight_scale)
    if ctx.needs_input_grad[3]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).float().sum(dim=0).to(ctx.bias_dtype)
    return grad_x, None, None, grad_bias, None, None, None, None, None, None


for _name in ("int8_linear", "int8_linear_reference"):
    torch.library.register_autograd(f"llmint8::{_name}", _backward, setup_context=_setup_context, lib=_library)


def _register_vmap(name: str) -> None:
    """Runs the examples of a vmap one by one: each chooses its own outlier columns, as a loop would."""
    op = getattr(torch.ops.llmint8, name).default

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        examples = (
            [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([op(*example) for example in examples]), 0

    torch.library.register_vmap(f"llmint8::{name}", vmap, lib=_library)


_register_vmap("int8_linear")
_register_vmap("int8_linear_grad_input")
