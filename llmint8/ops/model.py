"""Operators that a model's layers are made of around the int8 products, each one call instead of many.

On a CPU a small model spends more time between its int8 layers than in them. These operators are for inference: they
have no gradient. They compute in fp32; what they return, and what goes into an int8 product, is rounded to the dtype of
their input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmint8.ops.attention import attention
from llmint8.ops.linear import RULE_SCHEMA, int8_linear
from llmint8.ops.registry import define
from llmint8.outliers import NO_OUTLIERS, OutlierRule

Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]

# Activations of a gated MLP, by the names of the operator.
ACTIVATIONS = ("silu", "gelu_tanh")


def int8_linears(
    x: Tensor,
    weights: Tensors,
    weight_scales: Tensors,
    biases: OptionalTensors,
    outlier_columns: OptionalTensors,
    rule: OutlierRule,
) -> list[Tensor]:
    """Applies several int8 weights to one input, which is quantized once: queries, keys and values, say.

    Args:
        x: fp16, bf16 or fp32 [..., K].
        weights: int8 [N, K], each with an N of its own.
        weight_scales: fp32 [N, 1].
        biases: Floating point [N], or None.
        outlier_columns: int64, or None.
        rule: The treatment of outlier columns, the same for all weights.

    Returns:
        What `ops.int8_linear` gives for each weight.
    """
    return _int8_linears.call(x, weights, weight_scales, biases, outlier_columns, *rule)


def gated_mlp(
    x: Tensor,
    weights: Tensors,
    weight_scales: Tensors,
    biases: OptionalTensors,
    outlier_columns: OptionalTensors,
    activation: str,
    down_budget: int,
    rule: OutlierRule,
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
        rule: The treatment of outlier columns, the same for all layers but for the budget.

    Returns:
        [..., N], dtype of `x`.
    """
    return _gated_mlp.call(x, weights, weight_scales, biases, outlier_columns, activation, down_budget, *rule)


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
    return _rms_norm.call(x, weight, eps, add_one)


def rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Applies rotary embeddings (Su et al. 2021, section 3.4.2) in place, to the two halves of each head.

    Args:
        query: fp16, bf16 or fp32 [batch, heads, M, depth]; changed.
        key: [batch, key_heads, M, depth], dtype of `query`; changed.
        cosine: [batch or 1, M, depth].
        sine: As `cosine`.
    """
    _rotate.call(query, key, cosine, sine)


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
    of `ops.attention`, with the same result. Few rows have no outlier columns, so there is no rule for them.

    Args:
        x: fp16, bf16 or fp32 [batch, 1, K], at most 8 sequences.
        cosine: [batch or 1, 1, depth].
        sine: As `cosine`.
        keys: [batch, key_heads, capacity, depth], dtype of `x`; the new keys are written to `position`.
        values: As `keys`.
        position: Number of tokens before this one.
        norms: Weights [K] of the norms before the attention and before the MLP.
        head_norms: Weights [depth] of the norms of queries and keys, or nothing.
        eps: Epsilon of all norms.
        add_one: As in `rms_norm`.
        weights: int8; queries, keys, values, output, gate, up and down.
        weight_scales: fp32 [N, 1].
        biases: Floating point [N], or None.
        scale: Factor of the attention scores.
        activation: One of `ACTIVATIONS`.

    Returns:
        [batch, 1, K], dtype of `x`.

    Raises:
        ValueError: There is no room in the cache.
    """
    return _decoder_layer.call(
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


def _int8_linears_fallback(
    x: Tensor,
    weights: Tensors,
    scales: Tensors,
    biases: OptionalTensors,
    columns: OptionalTensors,
    *rule: Any,
) -> list[Tensor]:
    layers = zip(weights, scales, biases, columns, strict=True)
    return [int8_linear(x, *layer, OutlierRule(*rule)) for layer in layers]


def _int8_linears_fake(x: Tensor, weights: Tensors, *args: Any) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], weight.shape[0])) for weight in weights]


def _gated_mlp_fallback(
    x: Tensor,
    weights: Tensors,
    scales: Tensors,
    biases: OptionalTensors,
    columns: OptionalTensors,
    activation: str,
    down_budget: int,
    *rule: Any,
) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    gate, up = _int8_linears_fallback(x, weights[:2], scales[:2], biases[:2], columns[:2], *rule)
    if activation == "silu":
        gate = torch.nn.functional.silu(gate.float())
    else:
        gate = torch.nn.functional.gelu(gate.float(), approximate="tanh")
    hidden = (gate * up.float()).to(x.dtype)
    down = OutlierRule(*rule)._replace(budget=down_budget)
    return int8_linear(hidden, weights[2], scales[2], biases[2], columns[2], down)


def _gated_mlp_fake(x: Tensor, weights: Tensors, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weights[2].shape[0]))


def _rms_norm_fallback(x: Tensor, weight: Tensor, eps: float, add_one: bool) -> Tensor:
    wide = x.float()
    factor = 1 + weight.float() if add_one else weight.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * factor).to(x.dtype)


def _like_x(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rotate_fallback(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> None:
    cosine, sine = cosine.float().unsqueeze(1), sine.float().unsqueeze(1)
    for x in (query, key):
        first, second = x.float().chunk(2, dim=-1)
        x.copy_(torch.cat([first, second], dim=-1) * cosine + torch.cat([-second, first], dim=-1) * sine)


def _nothing(*args: Any) -> None:
    return None


def _decoder_layer_fallback(
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
    normed = rms_norm(x, norms[0], eps, add_one)
    projected = int8_linears(normed, weights[:3], scales[:3], biases[:3], columns, NO_OUTLIERS)
    query, key, value = (head.view(*x.shape[:2], -1, keys.shape[3]) for head in projected)
    if head_norms:
        query, key = rms_norm(query, head_norms[0], eps, add_one), rms_norm(key, head_norms[1], eps, add_one)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    rotate(query, key, cosine, sine)
    keys[:, :, position : position + 1] = key
    values[:, :, position : position + 1] = value.transpose(1, 2)
    attended = attention(query, keys[:, :, : position + 1], values[:, :, : position + 1], scale)
    x = x + int8_linear(attended.flatten(2), weights[3], scales[3], biases[3], None, NO_OUTLIERS)
    normed = rms_norm(x, norms[1], eps, add_one)
    return x + gated_mlp(normed, weights[4:], scales[4:], biases[4:], columns, activation, 0, NO_OUTLIERS)


_LAYERS_SCHEMA = "Tensor[] weights, Tensor[] weight_scales, Tensor?[] biases, Tensor?[] outlier_columns"

_int8_linears = define(
    "int8_linears",
    f"(Tensor x, {_LAYERS_SCHEMA}, {RULE_SCHEMA}) -> Tensor[]",
    fallback=_int8_linears_fallback,
    fake=_int8_linears_fake,
)
_gated_mlp = define(
    "gated_mlp",
    f"(Tensor x, {_LAYERS_SCHEMA}, str activation, int down_budget, {RULE_SCHEMA}) -> Tensor",
    fallback=_gated_mlp_fallback,
    fake=_gated_mlp_fake,
)
_rms_norm = define(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps, bool add_one) -> Tensor",
    fallback=_rms_norm_fallback,
    fake=_like_x,
)
_rotate = define(
    "rotate",
    "(Tensor(a!) query, Tensor(b!) key, Tensor cosine, Tensor sine) -> ()",
    fallback=_rotate_fallback,
    fake=_nothing,
)
_decoder_layer = define(
    "decoder_layer",
    "(Tensor x, Tensor cosine, Tensor sine, Tensor(a!) keys, Tensor(b!) values, int position, Tensor[] norms, "
    "Tensor[] head_norms, float eps, bool add_one, Tensor[] weights, Tensor[] weight_scales, Tensor?[] biases, "
    "float scale, str activation) -> Tensor",
    fallback=_decoder_layer_fallback,
    fake=_like_x,
)
