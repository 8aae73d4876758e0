"""What transformers saves of a model: its settings and conversions, kept in step with the layers it has now."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel

from llmint8.config import Int8Config, matches
from llmint8.integrations.transformers import tripwire
from llmint8.integrations.transformers.conversions import Identity, ReadBitsandbytesScale, Unflatten
from llmint8.integrations.transformers.cpu_inference import use_plain_operators
from llmint8.integrations.transformers.tied_heads import untie_int8_heads
from llmint8.quantize import int8_layers

if TYPE_CHECKING:
    from llmint8.integrations.transformers.quantizer import Int8HfQuantizer


def prepare_for_saving(model: PreTrainedModel, quantizer: "Int8HfQuantizer | None" = None) -> None:
    """Makes a model with int8 layers, as they are now, one that transformers saves and loads again as int8.

    Args:
        model: Quantized by `from_pretrained` or by `quantize_`.
        quantizer: The one that loaded it; a new one with the settings of the first layer if None.
    """
    from llmint8.integrations.transformers.quantizer import Int8HfQuantizer, bitsandbytes_conversion

    if quantizer is None:
        quantizer = Int8HfQuantizer(next(int8_layers(model))[1].int8_config, pre_quantized=True)
        model.hf_quantizer = quantizer
        model.is_quantized = True
        model.quantization_method = Int8Config.quant_method
    quantizer.quantization_config = _with_settings_of_layers(quantizer.quantization_config, model)
    model.config.quantization_config = quantizer.quantization_config
    untie_int8_heads(model)
    bitsandbytes = quantizer.quantization_config.checkpoint_format == "bitsandbytes"
    ours = [bitsandbytes_conversion()] if bitsandbytes else tripwire.saving_conversions(model)
    # A tensor gets one conversion: an int8 weight ours, so it is saved under its name in the model.
    weights = [f"{name}.weight" for name, _ in int8_layers(model)]
    model._weight_conversions = [c for c in without_ours(model) if not _reverses(c, weights)] + ours


def forget_int8(model: nn.Module) -> None:
    """Makes a model without int8 layers one that transformers saves as float, if it was one of ours.

    Args:
        model: Any module.
    """
    from llmint8.integrations.transformers.quantizer import Int8HfQuantizer

    use_plain_operators(model)
    if isinstance(getattr(model, "hf_quantizer", None), Int8HfQuantizer):
        model._weight_conversions = without_ours(model)  # type: ignore[assignment]
        model.hf_quantizer.remove_quantization_config(model)  # type: ignore[operator, union-attr]


def without_ours(model: nn.Module) -> list[Any]:
    """Returns the conversions of a model but for those of this package."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # made without from_pretrained: what transformers itself would take in that case
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [c for c in mapping if not isinstance(c, PrefixChange)]
    ours = (Identity, ReadBitsandbytesScale, Unflatten)
    return [c for c in conversions if not any(isinstance(op, ours) for op in getattr(c, "operations", ()))]


def _with_settings_of_layers(config: Int8Config, model: PreTrainedModel) -> Int8Config:
    """The configuration that gives each layer the settings it has now, since they may be changed at any time."""
    settings = {name: layer.int8_config.runtime_settings() for name, layer in int8_layers(model)}
    if all(config.for_layer(name).runtime_settings() == own for name, own in settings.items()):
        return config
    of_most = dict(Counter(tuple(own.items()) for own in settings.values()).most_common(1)[0][0])
    overrides = {_only_for(name, settings): own for name, own in settings.items() if own != of_most}
    return config.replace(**of_most, overrides=overrides)


def _only_for(name: str, names: Iterable[str]) -> str:
    """A pattern for one layer alone: its name, or a shell pattern if that is also the end of another name."""
    ends = any(matches(other, [name]) for other in names if other != name)
    return f"[{name[0]}]{name[1:]}" if ends else name


def _reverses(conversion: Any, weights: Iterable[str]) -> bool:
    """Whether a conversion would turn one of some weights into something else when the model is saved."""
    if not isinstance(conversion, WeightConverter):
        return False
    reverse = conversion.reverse_transform()
    return any(reverse.rename_source_key(weight)[1] is not None for weight in weights)
