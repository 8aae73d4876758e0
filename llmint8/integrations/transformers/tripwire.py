"""Why one weight of a checkpoint is stored flat.

transformers only warns about a quantization method that it does not know, and loads the int8 codes into float layers:
garbage, without an error. It does refuse a tensor of the wrong shape. So one int8 weight of each checkpoint is stored
as [N * K]: opened without `llmint8` imported, the checkpoint fails loudly, and with it the weight gets its shape back.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_converters, apply_renamings

from llmint8.checkpoint import TensorInfo
from llmint8.integrations.transformers.conversions import Unflatten
from llmint8.quantize import int8_layers


def loading_conversions(tensors: Mapping[str, TensorInfo], conversions: Sequence[Any]) -> list[WeightConverter]:
    """Returns the conversions that give the flat weights of a checkpoint their shape.

    Args:
        tensors: What the checkpoint holds.
        conversions: transformers' own, whose renamings come first.
    """
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    names = [name for name, info in tensors.items() if info.dtype == "I8" and len(info.shape) == 1]
    return [_conversion(apply_renamings(name, renamings)) for name in names]


def saving_conversion(model: nn.Module, conversions: Sequence[Any]) -> WeightConverter | None:
    """Returns the conversion whose reverse stores one weight flat.

    Args:
        model: With int8 layers.
        conversions: Those the model has; none of them may touch the weight, for a tensor gets at most one.

    Returns:
        None if there is no such weight.
    """
    if any(isinstance(op, Unflatten) for conversion in conversions for op in getattr(conversion, "operations", ())):
        return None
    reverse = [c.reverse_transform() for c in conversions if isinstance(c, WeightConverter)]
    for name, _ in int8_layers(model):
        if apply_converters(f"{name}.weight", reverse)[1] is None:
            return _conversion(f"{name}.weight")
    return None


def _conversion(name: str) -> WeightConverter:
    return WeightConverter(re.escape(name), name, [Unflatten()])
