"""Operators that a model's layers are made of around the int8 products, each one call instead of many.

On a CPU a small model spends more time between its int8 layers than in them. These operators are for inference: they
have no gradient. They compute in fp32; what they return, and what goes into an int8 product, is rounded to the dtype of
their input.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmint8.ops import attention, int8_linear, is_native

Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]

# Activations of a gated MLP, by the names of the operator.
ACTIVATIONS = ("silu", "gelu_tanh")

_library = torch.library.Library("llmint8", "FRAGMENT")
_LAYERS = "Tensor[] weights, Tensor[] weight_scales, Tensor?[] biases, Tensor?[] outlier_columns"
_SETTINGS = "str mode, float threshold, int budget, bool relative, bool symmetric"
_SCHEMAS = {
    "int8_linears": f"(Tensor x, {_LAYERS}, {_SETTINGS}) -> Tensor[]",
    "gated_mlp": f"(Tensor x, {_LAYERS}, str activation, int down_budget, {_SETTINGS}) -> Tensor",
    "rms_norm": "(Tensor x, Tensor weight, float eps, bool add_one) -> Tensor",
    "decoder_layer": (
        "(Tensor x, Tensor cosine, Tensor sine, Tensor(a!) keys, Tensor(b!) values, int position, Tensor[] norms, "
        "Tensor[] head_norms, float eps, bool add_one, Tensor[] weights, Tensor[] weight_scales, Tensor?[] biases, "
        "float scale, str activation) -> Tensor"
    ),
    "rotate": "(Tensor(a!) query, Tensor(b!) key, Tensor cosine, Tensor sine) -> ()",
}
for _name, _schema in _SCHEMAS.items():
    for _kind in ("", "_reference"):  # a backend hands over to the reference what it does not take
        _library.define(f"{_name}{_kind}{_schema}", tags=(torch.Tag.pt2_compliant_tag,))

_int8_linears_op = torch.ops.llmint8.int8_linears.default
_gated_mlp_op = torch.ops.llmint8.gated_mlp.default
_rms_norm_op = torch.ops.llmint8.rms_norm.default
_rotate_op = torch.ops.llmint8.rotate.default
_decoder_layer_op = torch.ops.llmint8.decoder_layer.default


def int8_linears(
    x: Tensor,
    weights: Tensors,
    weight_scales: Tensors,
    biases: OptionalTensors,
    outlier_columns: OptionalTensors,
    *settings: Any,
) -> list[Tensor]:
    """Applies several int8 weights to one input, which is quantized once: queries, keys and values, say.

    Args:
        x: fp16, bf16 or fp32 [..., K].
        weights: int8 [N, K], each with an N of its own.
        weight_scales: fp32 [N, 1].
        biases: Floating point [N], or None.
        outlier_columns: int64, or None.
        *settings: `mode`, `threshold`, `budget`, `relative` and `symmetric`, as `ops.int8_linear` takes them.

    Returns:
        What `ops.int8_linear` gives for each weight.
    """
    return _int8_linears_op(x, weights, weight_scales, biases, outlier_columns, *settings)


def gated_mlp(
    x: Tensor,
    weights: Tensors,
    weight_scales: Tensors,
    biases: OptionalTensors,
    outlier_columns: OptionalTensors,
    activation: str,
    down_budget: int,
    *settings: Any,
) -> Tensor:
    """Applies a gated MLP (Shazeer 2020, equation 6), `down(activation(gate(x)) * up(x))`, of int8 layers.

    Args:
        x: fp16, bf16 or fp32 [..., K].
        weights: Those of gate, up and down: int8 [H, K], [H, K] and [N, H].
        weight_scales: fp32 [H, 1], [H, 1] and [N, 1].
        biases: Floating point, or None.
        outlier_columns: int64, or None.
        activation: One of `ACTIVATIONS`.
        down_budget: The `budget` of down, which has more columns than the others.
        *settings: `mode`, `threshold`, `budget`, `relative` and `symmetric`, as `ops.int8_linear` takes them; all
            layers have the same but for the budget.

    Returns:
        [..., N], dtype of `x`.
    """
    return _gated_mlp_op(x, weights, weight_scales, biases, outlier_columns, activation, down_budget, *settings)


def rms_norm(x: Tensor, weight: Tensor, eps: float, add_one: bool = False) -> Tensor:
    """Divides rows by their root mean square (Zhang and Sennrich 2019, equation 4) and multiplies by a weight.

    Args:
        x: fp16, bf16 or fp32 [..., K].
        weight: [K].
        eps: Added to the mean square.
        add_one: The factor is `1 + weight`, as Gemma has it.

    Returns:
        [..., K], dtype of `x`.
    """
    return _rms_norm_op(x, weight, eps, add_one)


def rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Applies rotary embeddings (Su et al. 2021, section 3.4.2) in place, to the two halves of each head.

    Args:
        query: fp16, bf16 or fp32 [batch, heads, M, depth]; changed.
        key: [batch, key_heads, M, depth], dtype of `query`; changed.
        cosine: [batch or 1, M, depth].
        sine: As `cosine`.
    """
    _rotate_op(query, key, cosine, sine)


def decoder_layer(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    position: int,
    norms: Tensors,
    head_norms: Tensors,
    eps: float,
    add_one: bool,
    weights: Tensors,
    weight_scales: Tensors,
    biases: OptionalTensors,
    scale: float,
    activation: str,
) -> Tensor:
    """Applies a whole decoder layer of a Llama to the next token of each sequence.

    That is, `y = x + out(attention(rotate(project(norm(x)))))` and `y + mlp(norm(y))`, made of the operators above and
    of `ops.attention`, with the same result. Few rows have no outlier columns, so there are no settings.

    Args:
        x: fp16, bf16 or fp32 [batch, 1, K], at most 8 sequences.
        cosine: [batch or 1, 1, depth].
        sine: As `cosine`.
        keys: [batch, key_heads, capacity, depth], dtype of `x`; the new keys are written to `position`.
        values: As `keys`.
        position: Number of tokens before this one.
        norms: Weights [K] of the norms before the attention and before the MLP.
        head_norms: Weights [depth] of the norms of queries and keys, or nothing.
        eps: Of all norms.
        add_one: As in `rms_norm`.
        weights: int8; queries, keys, values, output, gate, up and down.
        weight_scales: fp32 [N, 1].
        biases: Floating point [N], or None.
        scale: Of the attention scores.
        activation: One of `ACTIVATIONS`.

    Returns:
        [batch, 1, K], dtype of `x`.

    Raises:
        ValueError: There is no room in the cache.
    """
    return _decoder_layer_op(
        x,
        cosine,
        sine,
        keys,
        values,
        position,
        norms,
        head_norms,
        eps,
        add_one,
        weights,
        weight_scales,
        biases,
        scale,
        activation,
    )


def _int8_linears_reference(
    x: Tensor,
    weights: Tensors,
    scales: Tensors,
    biases: OptionalTensors,
    columns: OptionalTensors,
    *settings: Any,
) -> list[Tensor]:
    layers = zip(weights, scales, biases, columns, strict=True)
    return [int8_linear(x, *layer, *settings) for layer in layers]


def _gated_mlp_reference(
    x: Tensor,
    weights: Tensors,
    scales: Tensors,
    biases: OptionalTensors,
    columns: OptionalTensors,
    activation: str,
    down_budget: int,
    *settings: Any,
) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    gate, up = _int8_linears_reference(x, weights[:2], scales[:2], biases[:2], columns[:2], *settings)
    if activation == "silu":
        gate = torch.nn.functional.silu(gate.float())
    else:
        gate = torch.nn.functional.gelu(gate.float(), approximate="tanh")
    hidden = (gate * up.float()).to(x.dtype)
    mode, threshold, _, *others = settings
    return int8_linear(hidden, weights[2], scales[2], biases[2], columns[2], mode, threshold, down_budget, *others)


def _rms_norm_reference(x: Tensor, weight: Tensor, eps: float, add_one: bool) -> Tensor:
    wide = x.float()
    factor = 1 + weight.float() if add_one else weight.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * factor).to(x.dtype)


def _rotate_reference(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> None:
    cosine, sine = cosine.float().unsqueeze(1), sine.float().unsqueeze(1)
    for x in (query, key):
        first, second = x.float().chunk(2, dim=-1)
        x.copy_(torch.cat([first, second], dim=-1) * cosine + torch.cat([-second, first], dim=-1) * sine)


def _decoder_layer_reference(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    position: int,
    norms: Tensors,
    head_norms: Tensors,
    eps: float,
    add_one: bool,
    weights: Tensors,
    scales: Tensors,
    biases: OptionalTensors,
    scale: float,
    activation: str,
) -> Tensor:
    if not 0 <= position < keys.shape[2]:
        raise ValueError(f"there is no room in the cache for token {position}, it has room for {keys.shape[2]}")
    columns: list[Tensor | None] = [None] * 3
    settings = ("none", 0.0, 0, False, False)
    normed = rms_norm(x, norms[0], eps, add_one)
    projected = int8_linears(normed, weights[:3], scales[:3], biases[:3], columns, *settings)
    query, key, value = (head.view(*x.shape[:2], -1, keys.shape[3]) for head in projected)
    if head_norms:
        query, key = rms_norm(query, head_norms[0], eps, add_one), rms_norm(key, head_norms[1], eps, add_one)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    rotate(query, key, cosine, sine)
    keys[:, :, position : position + 1] = key
    values[:, :, position : position + 1] = value.transpose(1, 2)
    attended = attention(query, keys[:, :, : position + 1], values[:, :, : position + 1], scale)
    x = x + int8_linear(attended.flatten(2), weights[3], scales[3], biases[3], mode="none")
    normed = rms_norm(x, norms[1], eps, add_one)
    return x + gated_mlp(normed, weights[4:], scales[4:], biases[4:], columns, activation, 0, *settings)


_REFERENCES: dict[str, Callable[..., Any]] = {
    "decoder_layer": _decoder_layer_reference,
    "int8_linears": _int8_linears_reference,
    "gated_mlp": _gated_mlp_reference,
    "rms_norm": _rms_norm_reference,
    "rotate": _rotate_reference,
}


def _register(name: str) -> None:
    """Binds the reference to every device, and the native kernels to a CPU once they are loaded."""
    op, reference = getattr(torch.ops.llmint8, name).default, _REFERENCES[name]

    def run(*args: Any) -> Any:
        return op(*args) if is_native(*args) else reference(*args)

    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(f"{name}_reference", reference, "CompositeExplicitAutograd")


for _name in _SCHEMAS:
    _register(_name)


@torch.library.register_fake("llmint8::int8_linears_reference", lib=_library)
@torch.library.register_fake("llmint8::int8_linears", lib=_library)
def _(x: Tensor, weights: Tensors, *args: Any) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], weight.shape[0])) for weight in weights]


@torch.library.register_fake("llmint8::gated_mlp_reference", lib=_library)
@torch.library.register_fake("llmint8::gated_mlp", lib=_library)
def _(x: Tensor, weights: Tensors, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weights[2].shape[0]))


@torch.library.register_fake("llmint8::rms_norm_reference", lib=_library)
@torch.library.register_fake("llmint8::rms_norm", lib=_library)
def _(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("llmint8::rotate_reference", lib=_library)
@torch.library.register_fake("llmint8::rotate", lib=_library)
def _(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> None:
    return None


@torch.library.register_fake("llmint8::decoder_layer_reference", lib=_library)
@torch.library.register_fake("llmint8::decoder_layer", lib=_library)
def _(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
