"""Which layers of a transformers model stay in 16 bit unless asked for."""

import re

from torch import nn
from transformers.modeling_utils import PreTrainedModel

# Heads and routers by the names that transformers gives them: a part of a module's path. Most heads lie outside the
# base model and are found by that, but some models have no base model inside.
_NAMES = re.compile(
    r"(^|\.)(classifier|classification_head|dt_proj|gate|lm_heads?|output_projection|qa_outputs|router|score)($|\.)"
)


def layers_kept_in_16_bit(model: nn.Module) -> set[str]:
    """Returns the names of the layers that quantization leaves out by default.

    These are output embeddings and what is tied to them, heads (by name, or outside the base model), routers, gates
    with a single output, and layers that the model itself keeps in fp32.

    Args:
        model: Any module, also on the meta device; nothing is left out of one that is not a transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        return set()
    outputs = {id(m.get_output_embeddings()) for m in model.modules() if isinstance(m, PreTrainedModel)}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tied_layers = {key.removesuffix(".weight") for pair in tied.items() for key in pair}
    in_fp32 = _kept_in_fp32(model)
    bodies = _bodies(model)
    return {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if getattr(module, "weight", None) is not None
        and (
            id(module) in outputs
            or name in tied_layers
            or getattr(module, "out_features", None) == 1
            or _NAMES.search(name)
            or (bodies and not name.startswith(bodies))
            or (in_fp32 and in_fp32.search(name))
        )
    }


def _kept_in_fp32(model: PreTrainedModel) -> re.Pattern[str] | None:
    """What the model asks to be kept in fp32, as a pattern of names."""
    parts = [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]
    return re.compile("|".join(rf"(^|\.){part}($|\.)" for part in parts)) if parts else None


def _bodies(model: PreTrainedModel) -> tuple[str, ...]:
    """Name prefixes of the pretrained models inside a model; none if the model is itself the base model."""
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if not isinstance(base, nn.Module):
        return ()
    nested = [name for name, module in model.named_modules() if name and isinstance(module, PreTrainedModel)]
    return tuple(f"{name}." for name in {*nested, model.base_model_prefix})
