"""Attention with rotary embeddings: projected in one operator, rotated in another, with a cache that grows."""

import importlib
import inspect
from typing import Any

from torch import Tensor, nn

from llmint8 import fused_ops
from llmint8.integrations.transformers import kv_cache
from llmint8.integrations.transformers.fused.conditions import only_int8, runs_fused, tensors
from llmint8.integrations.transformers.fused.same_code import is_known

# Classes whose `forward` projects, normalizes the heads if there are norms, rotates, caches and attends; they differ in
# nothing that SDPA looks at.
_KNOWN = (
    "llama.modeling_llama.LlamaAttention",
    "mistral.modeling_mistral.MistralAttention",
    "qwen2.modeling_qwen2.Qwen2Attention",
    "qwen3.modeling_qwen3.Qwen3Attention",
    "gemma3.modeling_gemma3.Gemma3Attention",
)


def fused_forward(base: type[nn.Module]) -> Any | None:
    """Returns a `forward` for a class of attention modules, or None if it is none that is known."""
    if not base.__name__.endswith("Attention") or not _is_known(base):
        return None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = base.forward

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        modules = self._modules
        layers = (modules["q_proj"], modules["k_proj"], modules["v_proj"])
        if (
            position_embeddings is None
            or self.training
            or base.forward is not plain
            or self.config._attn_implementation != "sdpa"
            or "past_key_values" in kwargs
            or not only_int8(layers)
            or not runs_fused(hidden_states)
        ):
            if cache is not None:  # transformers 5.23 has another name for it
                kwargs["cache"] = cache
            return base.forward(
                self,
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query, key, value = fused_ops.int8_linears(hidden_states, *tensors(layers), *layers[0]._settings)
        query, key, value = query.view(heads), key.view(heads), value.view(heads)
        if "q_norm" in modules:
            query, key = modules["q_norm"](query), modules["k_norm"](key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        fused_ops.rotate(query, key, *position_embeddings)
        if cache is not None:
            key, value = kv_cache.update(cache, key, value, self.layer_idx, kwargs)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return modules["o_proj"](output.reshape(*shape, -1)), weights

    return forward


def _is_known(base: type[nn.Module]) -> bool:
    from transformers.models.llama import modeling_llama

    used = inspect.unwrap(base.forward).__globals__
    if not all(
        name in used and is_known(used[name], modeling_llama, name) for name in ("apply_rotary_pos_emb", "rotate_half")
    ):
        return False
    for path in _KNOWN:
        module, name = path.rsplit(".", 1)
        if is_known(base.forward, importlib.import_module(f"transformers.models.{module}"), f"{name}.forward"):
            return True
    return False
