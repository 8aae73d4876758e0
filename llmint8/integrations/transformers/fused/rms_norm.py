"""RMS norms in one operator."""

from typing import Any

from torch import Tensor, nn

from llmint8 import ops
from llmint8.integrations.transformers.fused.conditions import runs_fused
from llmint8.integrations.transformers.fused.same_code import is_known

# The name of the epsilon, and whether 1 is added to the weight, of each class that is known.
kinds: dict[type[nn.Module], tuple[str, bool]] = {}


def fused_forward(base: type[nn.Module]) -> Any | None:
    """Returns a `forward` for a class of norms, or None if it is none that is known."""
    if not base.__name__.endswith("RMSNorm"):
        return None
    from transformers.models.gemma3 import modeling_gemma3 as gemma3
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.olmo2 import modeling_olmo2 as olmo2

    # The two differ in a rounding between, which the fused operator does without.
    if is_known(base.forward, llama, "LlamaRMSNorm.forward") or is_known(base.forward, olmo2, "Olmo2RMSNorm.forward"):
        return _forward(base, "variance_epsilon", add_one=False)
    inner = getattr(base, "_norm", None)
    if is_known(base.forward, gemma3, "Gemma3RMSNorm.forward") and is_known(inner, gemma3, "Gemma3RMSNorm._norm"):
        return _forward(base, "eps", add_one=True)
    return None


def kind(norm: nn.Module) -> tuple[float, bool] | None:
    """Returns the epsilon of a fused norm, and whether 1 is added to its weight; None if it is none."""
    known = kinds.get(getattr(type(norm), "_unfused", None))  # type: ignore[arg-type]
    if known is None or "weight" not in norm._parameters:
        return None
    return norm.__dict__[known[0]], known[1]


def _forward(base: type[nn.Module], eps: str, add_one: bool) -> Any:
    plain = base.forward
    kinds[base] = (eps, add_one)

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        weight = self._parameters.get("weight")  # none in a replica of nn.DataParallel
        if (
            weight is not None
            and hidden_states.dtype == weight.dtype
            and base.forward is plain
            and runs_fused(hidden_states)
        ):
            return ops.rms_norm(hidden_states, weight, getattr(self, eps), add_one)
        return base.forward(self, hidden_states)

    return forward
