"""`calibrate`: finds the outlier columns of each layer once, so that nothing is searched for at run time."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llmint8 import functional
from llmint8.config import Int8Config
from llmint8.nn import Int8Linear
from llmint8.nn.forms import is_int8
from llmint8.quantize import int8_layers

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def calibrate(
    model: ModuleT,
    batches: Iterable[Any],
    budget: int | float | None = None,
    threshold: float | None = None,
    relative: bool | None = None,
) -> ModuleT:
    """Sets the model to mode `"static"`, with the columns that score highest on sample inputs.

    Outlier features of the hidden states stay in the same columns whatever the text (section 4.1 of the paper), which
    is why columns found on a few thousand tokens serve for others. Those of down projections move with the text, so
    calibrate on a mixture of what the model will read; benchmarks/README.md has figures. A column's score is the mean
    of its scores in the batches.

    Args:
        model: A model with int8 layers, in any mode; changed in place. `save_pretrained` keeps the columns.
        batches: Inputs of the model: a mapping is passed as keywords, a tuple or list as arguments, anything else as
            the only argument.
        budget: Largest number of columns of a layer (an int), or largest share (a float). That of each layer's
            settings if None.
        threshold: Smallest score of an outlier column; that of `Int8Config(mode="static")` if None.
        relative: Scores a feature relative to the root mean square of its row (token). As each layer's settings have
            it if None.

    Returns:
        The same model.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting is out of range, the model has no int8 layers or one that is offloaded, there are no
            batches, or a layer saw no input.
    """
    given = {"budget": budget, "threshold": threshold, "relative": relative}
    layers = dict(int8_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no int8 layers; quantize it first")
    if offloaded := [name for name, layer in layers.items() if layer.weight.is_meta]:
        raise ValueError(f"{offloaded[0]} has no weight in memory; load the model without offloading to calibrate it")
    configs = {layer: _static(layer.int8_config, given) for layer in layers.values()}
    scores: dict[Int8Linear, Tensor] = {}  # summed: a rare spike in one batch must not displace a steady outlier
    seen: Counter[Int8Linear] = Counter()

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert is_int8(layer)
        rows = inputs[0].reshape(-1, layer.in_features)
        if layer.column_scale is not None:
            rows = rows * layer.column_scale
        if rows.shape[0] > 0:
            found = functional.outlier_scores(rows, bool(configs[layer].relative))
            scores[layer] = scores[layer] + found if layer in scores else found
            seen[layer] += 1

    hooks = [layer.register_forward_pre_hook(observe) for layer in configs]
    try:
        with torch.no_grad():
            for batch in batches:
                _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name, layer in layers.items() if layer not in scores]:
        raise ValueError(f"no batch reached {unseen[0]} ({len(unseen)} of {len(layers)} layers); nothing was changed")
    for layer, config in configs.items():
        mean = scores[layer] / seen[layer]
        outliers = functional.select_budget(mean, config.columns(layer.in_features))
        outliers &= functional.select_threshold(mean, config.threshold or 0.0)
        layer.set_outlier_columns(outliers.nonzero().flatten())
        layer.int8_config = config
    return model


def _static(config: Int8Config, given: dict[str, Any]) -> Int8Config:
    """The settings of a layer in mode static."""
    for name in ("budget", "relative"):
        if given[name] is None and config.mode in ("budget", "static"):
            given = {**given, name: getattr(config, name)}
    return config.replace(mode="static", **given)


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)
