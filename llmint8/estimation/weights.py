"""Bytes of a model's parameters and buffers."""

import itertools
import re
from collections import Counter

import torch
from torch import nn

from llmint8.estimation.result import Part, Weights
from llmint8.nn.forms import is_int8
from llmint8.quantize import int8_layers

_LAYER_NUMBER = re.compile(r"(^|\.)\d+(?=\.|$)")


def count_weights(model: nn.Module) -> Weights:
    """Adds up what a model holds, a tensor in several places once.

    Args:
        model: Any module, also on the meta device.
    """
    layers = {name: module for name, module in model.named_modules() if is_int8(module)}
    codes = scales = 0
    kept: Counter[tuple[str, str]] = Counter()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if owner in layers and leaf in layers[owner].code_names:
            codes += tensor.nbytes
        elif owner in layers and leaf in layers[owner].scale_names:
            scales += tensor.nbytes
        else:
            kept[_LAYER_NUMBER.sub(r"\1*", name), str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    parts = [Part(name, dtype, size) for (name, dtype), size in kept.items()]
    return Weights(codes, scales, tuple(sorted(parts, key=lambda part: (-part.bytes, part.name))))


def largest_float_weight(model: nn.Module, dtype: torch.dtype) -> int:
    """Returns what the largest int8 weight takes before it is quantized, in bytes; 0 if there is none.

    Args:
        model: With int8 layers.
        dtype: Dtype of the float weights.
    """
    sizes = (layer.weight.numel() for _, layer in int8_layers(model))
    return max(sizes, default=0) * dtype.itemsize
