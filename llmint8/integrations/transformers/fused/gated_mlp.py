"""Gated MLPs in one operator."""

from typing import Any

from torch import Tensor, nn

from llmint8 import ops
from llmint8.integrations.transformers.fused.conditions import are_watched, only_int8, runs_fused, tensors
from llmint8.integrations.transformers.fused.same_code import is_known


def fused_forward(base: type[nn.Module]) -> Any | None:
    """Returns a `forward` for a class of MLPs, or None if it is none that is known."""
    if not base.__name__.endswith("MLP"):
        return None
    from transformers.models.llama import modeling_llama

    if not is_known(base.forward, modeling_llama, "LlamaMLP.forward"):
        return None
    plain = base.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        modules = self._modules
        layers = (modules["gate_proj"], modules["up_proj"], modules["down_proj"])
        activation = activation_name(self.act_fn)
        if activation is None or base.forward is not plain or not only_int8(layers) or not runs_fused(x):
            return base.forward(self, x)
        gate, _, down = layers
        return ops.gated_mlp(x, *tensors(layers), activation, down.outlier_rule.budget, gate.outlier_rule)

    return forward


def activation_name(activation: Any) -> str | None:
    """The activation by the name that the operator has for it; None if it is another one, or watched."""
    from transformers import activations

    if not isinstance(activation, nn.Module) or are_watched((activation,)):
        return None
    if type(activation) in (nn.SiLU, activations.SiLUActivation):
        return "silu"
    if type(activation) is activations.GELUTanh:
        return "gelu_tanh"
    if type(activation) is nn.GELU and activation.approximate == "tanh":
        return "gelu_tanh"
    return None
