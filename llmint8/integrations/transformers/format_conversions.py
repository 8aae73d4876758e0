"""The conversions that a checkpoint format needs, for loading and for saving."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel

from llmint8.checkpoints.formats import Format
from llmint8.checkpoints.headers import TensorInfo
from llmint8.integrations.transformers import flat_weights
from llmint8.integrations.transformers.conversions import ReadScale, RenameWeight
from llmint8.quantize import int8_layers


def loading_conversions(
    format: Format, tensors: Mapping[str, TensorInfo], conversions: Sequence[Any]
) -> list[WeightConverter]:
    """Returns the conversions from the tensors of an int8 checkpoint to those of a model.

    Args:
        format: Format of the checkpoint.
        tensors: What it holds.
        conversions: transformers' own, whose renamings come first.
    """
    flat = flat_weights.loading_conversions(tensors, conversions) if format.flat_weights else []
    renamed = [WeightConverter(f".{format.weight_name}", ".weight", [RenameWeight()])]
    return [*flat, *(renamed if format.weight_name != "weight" else []), *_scale_conversions(format)]


def saving_conversions(format: Format, model: PreTrainedModel) -> list[WeightConverter]:
    """Returns the conversions whose reverse makes the tensors of an int8 checkpoint.

    Args:
        format: Format of the checkpoint.
        model: With int8 layers.
    """
    flat = flat_weights.saving_conversions(model) if format.flat_weights else []
    names = [name for name, _ in int8_layers(model)] if format.weight_name != "weight" else []
    renamed = [  # one by one, for float layers have a weight too
        WeightConverter(re.escape(f"{name}.{format.weight_name}"), f"{name}.weight", [RenameWeight()]) for name in names
    ]
    return [*flat, *renamed, *_scale_conversions(format)]


def _scale_conversions(format: Format) -> list[WeightConverter]:
    if format.scale_names == ("weight_scale",):
        return []
    return [WeightConverter([f".{leaf}" for leaf in format.scale_names], ".weight_scale", [ReadScale(format)])]
