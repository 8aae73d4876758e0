"""Attention of int8 models on a CPU.

PyTorch's own needs longer for one query in 16 bit than all int8 layers of a small model together, and three times as
long as in fp32. So where transformers asks for SDPA, modules with int8 projections get our kernel if it can do what
they ask for. Other models, other implementations of attention and gradients are as before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmint8 import ops
from llmint8.nn import Int8Linear

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def with_native_kernel(attention: Attention) -> Attention:
    """Wraps transformers' SDPA attention.

    Args:
        attention: `sdpa_attention_forward`, or what stands in its place.
    """

    def sdpa_or_native(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        plain = attention_mask is None and not dropout and ops.is_on_cpu(query)
        if not (plain and has_int8_projection(module)) or needs_more(query, key, value, kwargs):
            return attention(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        queries = query.shape[2]
        if queries == 1:
            causal = False
        elif causal and key.shape[2] > queries:  # a static cache that is not full yet
            key, value = key[:, :, :queries], value[:, :, :queries]
        elif causal and key.shape[2] < queries:
            return attention(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return ops.attention(query, key, value, scale, bool(causal)), None

    sdpa_or_native.uses_native_kernel = True  # type: ignore[attr-defined]
    return sdpa_or_native


def uses_native_kernel(attention: Attention) -> bool:
    """Whether an attention is what `with_native_kernel` returns, and not one that somebody has registered since."""
    return getattr(attention, "uses_native_kernel", False)


def has_int8_projection(module: nn.Module) -> bool:
    """Whether a module has an int8 projection."""
    return any(isinstance(child, Int8Linear) for child in module._modules.values())


def needs_more(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    """Whether something is asked for that `ops.attention` does not do."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return True
    return asks_for_more(options) or query.dim() != 4 or key.shape != value.shape or torch.jit.is_tracing()  # type: ignore[attr-defined]


def asks_for_more(options: dict[str, Any]) -> bool:
    """Whether the keywords of an attention ask for something that `ops.attention` does not do."""
    if options.get("position_bias") is not None or options.get("cache") is not None:
        return True
    return options.get("softcap") is not None or bool(options.get("output_attentions"))
