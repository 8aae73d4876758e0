"""Decoder layers in one operator, for the next token."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmint8 import ops
from llmint8.integrations.transformers import kv_cache
from llmint8.integrations.transformers.attention import asks_for_more, uses_native_kernel
from llmint8.integrations.transformers.fused.conditions import have_hooks, is_fused, reads_input_as_it_is, runs_fused
from llmint8.integrations.transformers.fused.fused_module import FusedModule
from llmint8.integrations.transformers.fused.gated_mlp import activation_name
from llmint8.integrations.transformers.fused.rms_norm import norm_settings
from llmint8.integrations.transformers.fused.same_code import is_known
from llmint8.kernels.cpu.limits import DECODE_ROWS
from llmint8.nn import Int8Linear

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


class FusedDecoderLayer(FusedModule):
    """The decoder layer of Llama, and of the many models that repeat its code."""

    self_attn: Any

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether a class is such a layer."""
        if not plain.__name__.endswith("DecoderLayer"):
            return False
        from transformers.models.llama import modeling_llama

        return is_known(plain.forward, modeling_llama, "LlamaDecoderLayer.forward")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Applies the layer, as the `forward` of transformers does with the same arguments."""
        if (
            attention_mask is None
            and hidden_states.shape[1] == 1
            and hidden_states.shape[0] <= DECODE_ROWS
            and position_embeddings is not None
            and cache is not None
            and not self.is_patched()
            and uses_native_kernel(ALL_ATTENTION_FUNCTIONS["sdpa"])
            and not asks_for_more(kwargs)
            and runs_fused(hidden_states)
            and (parts := _parts(self, hidden_states.dtype)) is not None
            and (room := kv_cache.room_for_one(cache, self.self_attn.layer_idx, hidden_states)) is not None
        ):
            norms, head_norms, eps, add_one, layers, activation = parts
            output = ops.decoder_layer(
                hidden_states,
                *position_embeddings,
                room.keys,
                room.values,
                room.used,
                [norm["weight"] for norm in norms],
                [norm["weight"] for norm in head_norms],
                eps,
                add_one,
                [layer["weight"] for layer in layers],
                [layer["weight_scale"] for layer in layers],
                [layer["bias"] for layer in layers],
                self.self_attn.scaling,
                activation,
            )
            room.show_one_more(cache.layers[self.self_attn.layer_idx])
            return output
        return super().forward(
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )


def _parts(layer: Any, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """What the operator needs of a layer; None if a part of it is not what the operator computes."""
    modules = layer._modules
    attend, mlp = modules["self_attn"], modules["mlp"]
    if layer.training or not (is_fused(attend) and is_fused(mlp)) or attend.config._attn_implementation != "sdpa":
        return None
    inner, outer = attend._modules, mlp._modules
    layers = [*(inner[name] for name in _PROJECTIONS), *(outer[name] for name in _MLP)]
    norms = [modules["input_layernorm"], modules["post_attention_layernorm"]]
    head_norms = [inner["q_norm"], inner["k_norm"]] if "q_norm" in inner else []
    activation = activation_name(outer["act_fn"])
    if activation is None or have_hooks((attend, mlp, *layers, *norms, *head_norms)):
        return None
    if not all(map(is_fused, (*norms, *head_norms))):
        return None
    settings = norm_settings(norms[0])
    if settings is None or any(norm_settings(norm) != settings for norm in (norms[1], *head_norms)):
        return None
    if not all(type(linear) is Int8Linear and reads_input_as_it_is(linear) for linear in layers):
        return None
    if any(norm._parameters["weight"].dtype != dtype for norm in (*norms, *head_norms)):
        return None
    parameters = [[module._parameters for module in group] for group in (norms, head_norms, layers)]
    return *parameters[:2], *settings, parameters[2], activation
