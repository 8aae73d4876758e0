"""`layer_errors`: how much each int8 layer is off, by its weight and by its input, and what that does to the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmint8.analysis.comparison import Totals, run, token_inputs, tracked
from llmint8.analysis.outlier_report import block_and_kind, calling, counted_rows, padding_mask
from llmint8.config import Int8Config
from llmint8.nn import Int8Linear
from llmint8.nn.forms import int8_form, is_int8


@dataclass(frozen=True)
class LayerError:
    """The error of one int8 layer, given the input that it has in the float model.

    Errors are relative, `||y' - y|| / ||y||` over all rows and output features, with the output `y` of the float layer.

    Attributes:
        name: The layer's name in its model.
        block: Name of the transformer layer it is in: `"model.layers.3"`.
        kind: What it is in it: `"mlp.down_proj"`.
        error: Error of the int8 layer.
        weights: Error of the int8 weight with the input as it is.
        activations: What quantizing the input adds: the distance between those two outputs, over `||y||`.
        kl: KL(float model || float model with only this layer in int8), in nats per token, or None if not asked for.
    """

    name: str
    block: str
    kind: str
    error: float
    weights: float
    activations: float
    kl: float | None = None


def layer_errors(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any],
    config: Int8Config | None = None,
    *,
    effect_on_kl: bool = False,
    progress: bool = False,
) -> list[LayerError]:
    """Measures every int8 layer of a model on the inputs that it has in the float model, so that errors do not add up.

    Both models are left as they were. On inputs of few rows (see `llmint8.ops.int8_linear`) nothing but weights is
    quantized.

    Args:
        model: A model with int8 layers.
        reference: The float model it was made from, with layers of the same names; on any device. Best in fp32: the
            rounding of its own outputs counts as error, in bf16 some 0.2 %.
        batches: Inputs of the model: a mapping is passed as keywords, a tuple or list as arguments, anything else as
            the only argument. Positions where the `attention_mask` of a mapping, [batch, tokens], is 0 do not count.
            With `effect_on_kl` batches of tokens, as in `compare`.
        config: Settings to measure with, whose overrides act by name; those of each layer if None.
        effect_on_kl: Also measures what each layer alone does to the predictions: one pass of the float model per
            layer and batch.
        progress: Shows a progress bar.

    Returns:
        One entry per layer that a batch reaches, in the order of the model.

    Raises:
        TypeError: With `effect_on_kl`, a batch is not one of tokens.
        ValueError: The model has no int8 layers, one has no float layer of its name and shape or no weight in memory,
            the mode is static but there are no calibrated columns, no batch reaches a layer, or, with
            `effect_on_kl`, the reference is in training mode.
    """
    layers = {name: layer for name, layer in model.named_modules() if is_int8(layer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no int8 layers; quantize it first")
    settings = {name: layer.int8_config if config is None else config.for_layer(name) for name, layer in layers.items()}
    for name, layer in layers.items():
        if layer.weight.is_meta:
            raise ValueError(f"{name} has no weight in memory; load the model without offloading first")
        if settings[name].mode == "static" and layer.outlier_columns is None:
            raise ValueError(f"{name} has no calibrated columns for mode 'static'; run llmint8.calibrate first")
    floats = {name: _float_layer(reference, name, layer) for name, layer in layers.items()}
    if effect_on_kl and reference.training:
        raise ValueError("the reference is in training mode, where dropout adds noise; call reference.eval() first")
    squares: dict[str, Tensor] = {}
    totals = {name: Totals() for name in layers}
    mask: Tensor | None = None

    def measure(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found = _squares(layers[name], inputs[0], output, mask)
        squares[name] = squares[name] + found if name in squares else found

    def replace(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        int8 = layers[name]
        return int8(inputs[0].to(int8.weight.device)).to(output)

    with _changed(layers, settings), torch.no_grad():
        for batch in tracked(batches, "Measuring layers", progress and not effect_on_kl):
            mask = padding_mask(reference, batch)
            inputs = token_inputs(batch) if effect_on_kl else batch
            with calling(floats, measure):
                output = run(reference, inputs)
            if effect_on_kl:
                for name in tracked(layers, "Effect on KL", progress):
                    with calling({name: floats[name]}, replace):
                        logits = run(reference, inputs).logits
                    totals[name].add(logits, output.logits, inputs["input_ids"], inputs.get("attention_mask"))
    reached = [name for name in layers if name in squares]
    if not reached:
        raise ValueError(f"no batch reached any of the {len(layers)} int8 layers")
    result = []
    for name in reached:
        error, weights, activations = (squares[name][1:] / squares[name][0]).sqrt().tolist()
        kl = totals[name].comparison().kl if effect_on_kl else None
        result.append(LayerError(name, *block_and_kind(name), error, weights, activations, kl))
    return result


def _float_layer(reference: nn.Module, name: str, layer: Int8Linear) -> nn.Module:
    """The float layer that an int8 layer was made from."""
    try:
        found = reference.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the reference has no {name}; give the float model that the int8 one was made from") from None
    if int8_form(found) is None:
        raise ValueError(f"{name} of the reference is a {type(found).__name__}; it must be a float linear layer")
    weight = layer.as_rows(found.get_parameter("weight"))
    if weight.shape != layer.weight.shape:
        raise ValueError(
            f"{name} is {list(weight.shape)} in the reference and {list(layer.weight.shape)} in the int8 model; give "
            "the float model that it was made from"
        )
    return found


def _squares(layer: Int8Linear, x: Tensor, output: Tensor, mask: Tensor | None) -> Tensor:
    """Squared norms of the float output, and of the three differences of `LayerError`: fp64 [4]."""
    x = x.to(layer.weight.device).float()
    y = counted_rows(output.to(x.device).float(), mask)
    quantized = counted_rows(layer(x), mask)
    bias = None if layer.bias is None else layer.bias.float()
    weights = nn.functional.linear(counted_rows(x, mask), layer.dequantized_weight(), bias)
    differences = (y, quantized - y, weights - y, quantized - weights)
    return torch.stack([d.square().sum(dtype=torch.float64) for d in differences]).cpu()


@contextmanager
def _changed(layers: Mapping[str, Int8Linear], settings: Mapping[str, Int8Config]) -> Iterator[None]:
    """Gives layers other settings for a while."""
    before = {name: layer.int8_config for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.int8_config = settings[name]
        yield
    finally:
        for name, layer in layers.items():
            layer.int8_config = before[name]
