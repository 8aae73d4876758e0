"""`attention`: softmax attention for inference, which models with int8 layers use on a CPU."""

import torch
from torch import Tensor

from llmint8.ops.checks import check_device
from llmint8.ops.registry import define


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False) -> Tensor:
    """Returns `softmax(scale * query . key) . value`, for inference: it has no gradient.

    Args:
        query: fp16, bf16 or fp32 [batch, heads, M, depth].
        key: [batch, key_heads, S, depth], dtype of `query`; each key head serves heads / key_heads heads in a row.
        value: As `key`.
        scale: Factor of the scores.
        causal: Row m sees keys 0 to S - M + m: the queries are of the last tokens. M must be at most S.

    Returns:
        [batch, M, heads, depth], dtype of `query`; sums and softmax are fp32.

    Raises:
        ValueError: Causal, with M greater than S.
    """
    return _attention.call(query, key, value, scale, causal)


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


def _fallback(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
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


def _fake(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    check_device(query, key, value)
    batch, heads, queries, depth = query.shape
    return query.new_empty((batch, queries, heads, depth))


_attention = define(
    "attention",
    "(Tensor query, Tensor key, Tensor value, float scale, bool causal) -> Tensor",
    fallback=_fallback,
    fake=_fake,
)
