"""RMS norms in one operator."""

from typing import Any, ClassVar

from torch import Tensor, nn

from llmint8 import ops
from llmint8.integrations.transformers.fused.conditions import runs_fused
from llmint8.integrations.transformers.fused.fused_module import FusedModule
from llmint8.integrations.transformers.fused.same_code import is_known


class FusedRMSNorm(FusedModule):
    """The RMS norm of Llama, and of the many models that repeat its code.

    Attributes:
        eps_name: The attribute with the epsilon.
        add_one: Whether the factor is `1 + weight`.
    """

    eps_name: ClassVar[str] = "variance_epsilon"
    add_one: ClassVar[bool] = False

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether a class is such a norm."""
        if not plain.__name__.endswith("RMSNorm"):
            return False
        from transformers.models.llama import modeling_llama as llama
        from transformers.models.olmo2 import modeling_olmo2 as olmo2

        # The two differ in a rounding between, which the fused operator does without.
        return is_known(plain.forward, llama, "LlamaRMSNorm.forward") or is_known(
            plain.forward, olmo2, "Olmo2RMSNorm.forward"
        )

    def forward(self, hidden_states: Tensor) -> Any:
        """Normalizes rows, [..., K]."""
        weight = self._parameters.get("weight")  # none in a replica of nn.DataParallel
        if (
            weight is not None
            and hidden_states.dtype == weight.dtype
            and not self.is_patched()
            and runs_fused(hidden_states)
        ):
            return ops.rms_norm(hidden_states, weight, getattr(self, self.eps_name), self.add_one)
        return super().forward(hidden_states)


class FusedGemmaRMSNorm(FusedRMSNorm):
    """The RMS norm of Gemma, which adds 1 to its weight."""

    eps_name = "eps"
    add_one = True

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether a class is such a norm."""
        if not plain.__name__.endswith("RMSNorm"):
            return False
        from transformers.models.gemma3 import modeling_gemma3 as gemma3

        norm = getattr(plain, "_norm", None)
        return is_known(plain.forward, gemma3, "Gemma3RMSNorm.forward") and is_known(
            norm, gemma3, "Gemma3RMSNorm._norm"
        )


def norm_settings(norm: nn.Module) -> tuple[float, bool] | None:
    """Returns the epsilon of a fused norm, and whether 1 is added to its weight; None if it is none.

    Args:
        norm: Any module.
    """
    if not isinstance(norm, FusedRMSNorm) or "weight" not in norm._parameters:
        return None
    return norm.__dict__[norm.eps_name], norm.add_one
