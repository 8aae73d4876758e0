"""Which layers of a transformers model stay in 16 bit unless asked for."""

import re

from torch import nn
from transformers.modeling_utils import PreTrainedModel


def layers_kept_in_16_bit(model: nn.Module) -> set[str]:
    """Returns the names of the layers that quantization leaves out by default.

    These are the output embedding and what is tied to it, heads (layers outside the base model, such as a
    classifier), layers that the model itself keeps in fp32, and gates with a single output.

    Args:
        model: Any module, also on the meta device; nothing is left out of one that is not a transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        return set()
    linears = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if getattr(module, "weight", None) is not None
    }
    output = model.get_output_embeddings()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tied_layers = {key.removesuffix(".weight") for pair in tied.items() for key in pair}
    fp32 = [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]
    fp32_pattern = re.compile("|".join(rf"(^|\.){part}($|\.)" for part in fp32)) if fp32 else None
    bodies = _bodies(model)
    return {
        name
        for name, module in linears.items()
        if module is output
        or name in tied_layers
        or getattr(module, "out_features", None) == 1
        or (bodies and not any(name.startswith(body) for body in bodies))
        or (fp32_pattern is not None and fp32_pattern.search(name))
    }


def _bodies(model: PreTrainedModel) -> list[str]:
    """Name prefixes of the pretrained models inside a model; none if the model is itself the base model."""
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if not isinstance(base, nn.Module):
        return []
    nested = [name for name, module in model.named_modules() if name and isinstance(module, PreTrainedModel)]
    return [f"{name}." for name in {*nested, model.base_model_prefix}]
