"""Attention with rotary embeddings: projected in one operator, rotated in another, with a cache that grows."""

import importlib
import inspect
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmint8 import ops
from llmint8.integrations.transformers import kv_cache
from llmint8.integrations.transformers.fused.conditions import only_int8, runs_fused, tensors
from llmint8.integrations.transformers.fused.fused_module import FusedModule
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


class FusedAttention(FusedModule):
    """The attention of Llama and of some others, with queries, keys and values from one operator."""

    config: Any
    head_dim: int
    layer_idx: int
    scaling: float

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether a class is such an attention."""
        return plain.__name__.endswith("Attention") and _is_known(plain)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attends, as the `forward` of transformers does with the same arguments."""
        modules: Any = self._modules
        layers = (modules["q_proj"], modules["k_proj"], modules["v_proj"])
        if (
            position_embeddings is None
            or self.training
            or self.is_patched()
            or self.config._attn_implementation != "sdpa"
            or not only_int8(layers)
            or not runs_fused(hidden_states)
        ):
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                cache=cache,
                **kwargs,
            )
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query, key, value = ops.int8_linears(hidden_states, *tensors(layers), layers[0].outlier_rule)
        query, key, value = query.view(heads), key.view(heads), value.view(heads)
        if "q_norm" in modules:
            query, key = modules["q_norm"](query), modules["k_norm"](key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ops.rotate(query, key, *position_embeddings)
        if cache is not None:
            key, value = kv_cache.update(cache, key, value, self.layer_idx, kwargs)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return modules["o_proj"](output.reshape(*shape, -1)), weights


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
