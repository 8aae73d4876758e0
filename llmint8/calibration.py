"""`calibrate`: finds the outlier columns of each layer once, so that nothing is searched for at run time."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llmint8 import functional
from llmint8.nn import Int8Linear
from llmint8.quantize import int8_layers

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def calibrate(model: ModuleT, batches: Iterable[Any], budget: int = 32, relative: bool = True) -> ModuleT:
    """Sets the model to mode `"static"`, with the columns that score highest on sample inputs.

    Outlier features stay in the same few columns whatever the text (section 4.1 of the paper), which is why columns
    found on a few thousand tokens serve for others.

    Args:
        model: A model with int8 layers, in any mode; changed in place. `save_pretrained` keeps the columns.
        batches: Inputs of the model: a mapping is passed as keywords, a tuple or list as arguments, anything else as
            the only argument.
        budget: Columns per layer; all columns of a layer that has fewer.
        relative: Scores a feature relative to the root mean square of its row (token).

    Returns:
        The same model.

    Raises:
        ValueError: The model has no int8 layers, there are no batches, or a layer saw no input.
    """
    layers = dict(int8_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no int8 layers; quantize it first")
    scores: dict[Int8Linear, Tensor] = {}  # summed: a rare spike in one batch must not displace a steady outlier

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Int8Linear)
        rows = inputs[0].reshape(-1, layer.in_features)
        if rows.shape[0] > 0:
            found = functional.outlier_scores(rows, relative)
            scores[layer] = scores[layer] + found if layer in scores else found

    hooks = [layer.register_forward_pre_hook(observe) for layer in set(layers.values())]
    try:
        with torch.no_grad():
            for batch in batches:
                _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, layer in layers.items() if layer not in scores]:
        raise ValueError(f"no batch reached {unseen[0]} ({len(unseen)} of {len(layers)} layers); nothing was changed")
    for layer in set(layers.values()):
        layer.set_outlier_columns(functional.largest_columns(scores[layer], budget))
        layer.int8_config = layer.int8_config.replace(mode="static", budget=budget, relative=relative)
    return model


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)
