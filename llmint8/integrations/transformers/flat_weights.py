"""Why some weights of a checkpoint are stored flat.

transformers only warns about a quantization method that it does not know, and loads the int8 codes into float layers:
garbage, without an error. It does refuse a tensor of the wrong shape. So one int8 weight of each part of a model that
can be loaded alone is stored as [N * K]: opened without `llmint8` imported, the checkpoint fails loudly, and with it
the weight gets its shape back.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_renamings
from transformers.modeling_utils import PreTrainedModel

from llmint8.checkpoints.headers import TensorInfo
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


def saving_conversions(model: PreTrainedModel) -> list[WeightConverter]:
    """Returns the conversions whose reverse stores the first int8 weight of each part of a model flat.

    Args:
        model: With int8 layers.
    """
    models = {name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    first: dict[tuple[str, str], str] = {}
    for name, _ in int8_layers(model):
        parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
        innermost = next((parent for parent in reversed(parents) if parent in models), "")
        first.setdefault((innermost, parents[0] if parents else name), name)
    return [_conversion(f"{name}.weight") for name in dict.fromkeys(first.values())]


def _conversion(name: str) -> WeightConverter:
    return WeightConverter(re.escape(name), name, [Unflatten()])
