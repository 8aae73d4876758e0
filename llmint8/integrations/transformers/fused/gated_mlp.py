"""Gated MLPs in one operator."""

from typing import Any

from torch import Tensor, nn

from llmint8 import ops
from llmint8.integrations.transformers.fused.conditions import have_hooks, only_int8, runs_fused, tensors
from llmint8.integrations.transformers.fused.fused_module import FusedModule
from llmint8.integrations.transformers.fused.same_code import is_known


class FusedGatedMLP(FusedModule):
    """The MLP of Llama, and of the many models that repeat its code."""

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether a class is such an MLP."""
        if not plain.__name__.endswith("MLP"):
            return False
        from transformers.models.llama import modeling_llama

        return is_known(plain.forward, modeling_llama, "LlamaMLP.forward")

    def forward(self, x: Tensor) -> Any:
        """Applies the MLP to rows, [..., K]."""
        modules = self._modules
        layers: Any = (modules["gate_proj"], modules["up_proj"], modules["down_proj"])
        activation = activation_name(self.act_fn)
        if activation is None or self.is_patched() or not only_int8(layers) or not runs_fused(x):
            return super().forward(x)
        gate, _, down = layers
        return ops.gated_mlp(x, *tensors(layers), activation, down.outlier_rule.budget, gate.outlier_rule)


def activation_name(activation: Any) -> str | None:
    """Returns the activation by the name that the operator has for it; None if it is another one, or has hooks.

    Args:
        activation: A module.
    """
    from transformers import activations

    if not isinstance(activation, nn.Module) or have_hooks((activation,)):
        return None
    if type(activation) in (nn.SiLU, activations.SiLUActivation):
        return "silu"
    if type(activation) is activations.GELUTanh:
        return "gelu_tanh"
    if type(activation) is nn.GELU and activation.approximate == "tanh":
        return "gelu_tanh"
    return None
