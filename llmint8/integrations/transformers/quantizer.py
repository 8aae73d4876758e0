"""`Int8HfQuantizer`: what transformers calls while it loads, saves or dequantizes a model of ours."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8 import heap, mapped_files
from llmint8.checkpoints import formats
from llmint8.checkpoints.formats import format_named
from llmint8.checkpoints.headers import (
    FLOAT_DTYPES,
    CheckpointError,
    TensorInfo,
    check_scales,
    read_headers,
)
from llmint8.config import Int8Config, matches
from llmint8.integrations.transformers import format_conversions
from llmint8.integrations.transformers.conversions import (
    Identity,
    QuantizeWeight,
    ReadScale,
    RenameWeight,
    Unflatten,
)
from llmint8.integrations.transformers.fused import fuse, unfuse
from llmint8.kernels.cpu import forward_pass
from llmint8.nn import FloatLinear, Int8Linear
from llmint8.ops import INPUT_DTYPES
from llmint8.quantize import dequantize_, int8_class, int8_layers, layers_to_quantize, replace_module


class Int8HfQuantizer(HfQuantizer):
    """Swaps linear layers for int8 ones before the weights are read, and quantizes each weight as it is read."""

    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": ["weight", "weight_scale"]}
    quantization_config: Int8Config

    def __init__(self, quantization_config: Int8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._tensors: dict[str, TensorInfo] = {}
        self._problems: list[str] = []
        self._files: Sequence[str] = ()
        self._mapped_before: set[tuple[int, int]] = set()

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Checks the dtype of the layers that are not quantized, which is that of the activations.

        Raises:
            ValueError: It is none that the int8 layers take.
        """
        if dtype not in INPUT_DTYPES:
            raise ValueError(f"dtype must be float16, bfloat16 or float32 for an int8 model, got {dtype}")
        return dtype

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        self._tensors = read_headers(checkpoint_files or ())
        self._files = () if self.pre_quantized else tuple(checkpoint_files or ())
        self._mapped_before = mapped_files.mappings(self._files)
        if self.pre_quantized and self._tensors:
            names = self._int8_layers_of_checkpoint(model)
        else:
            names = dict.fromkeys(self._layers_to_quantize(model), "")
        if not names:
            raise ValueError(f"{type(model).__name__} has no nn.Linear to quantize")
        for name, stem in names.items():
            layer = model.get_submodule(name)
            int8 = int8_class(layer)
            if int8 is None:
                raise CheckpointError(f"{name} is int8 in the checkpoint, but a {type(layer).__name__} in the model")
            made = int8.empty_like(layer, config.for_layer(name))
            if (stored := self._tensors.get(f"{stem}.outlier_columns")) and made.outlier_columns is not None:
                made.set_outlier_columns(torch.empty(stored.shape, dtype=torch.int64, device="meta"))
            if stored := self._tensors.get(f"{stem}.column_scale"):
                made.set_column_scale(torch.empty(stored.shape, device="meta"))
            for module in (made, made.weight, made.weight_scale):  # else transformers fills int8 with noise
                module._is_hf_initialized = True  # type: ignore[union-attr]
            replace_module(model, name, made)
        untie_int8_heads(model)
        _warn_of_experts(model)
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            *(rf"\.{re.escape(leaf)}$" for known in formats.FORMATS for leaf in known.scale_names[1:]),
            r"\.outlier_columns$",  # of a static checkpoint that is loaded in another mode
        }

    def _int8_layers_of_checkpoint(self, model: PreTrainedModel) -> dict[str, str]:
        """The layers with a scale in the checkpoint: their names in the model, and there."""
        check_scales(self._tensors)
        scales = {known.scale_names[0] for known in formats.FORMATS}
        parts = (key.rpartition(".") for key in self._tensors)
        stems = [stem for stem, _, leaf in parts if leaf in scales]
        targets = _names_in_model(model, (f"{stem}.weight" for stem in stems))
        names: dict[str, str] = {}
        for stem in stems:
            # A part that this class of model does not have has no target.
            names |= {target.removesuffix(".weight"): stem for target in targets[f"{stem}.weight"]}
        return names

    def _layers_to_quantize(self, model: PreTrainedModel) -> list[str]:
        """The layers with a float weight in the checkpoint that the settings want in int8."""
        tied = {name for name, _ in _tied_layers(model)}  # quantized once they are tied
        names = [name for name in layers_to_quantize(model, self.quantization_config) if name not in tied]
        if not self._tensors:
            return names
        sources: dict[str, TensorInfo] = {}
        for key, targets in _names_in_model(model, self._tensors).items():
            sources |= dict.fromkeys(targets, self._tensors[key])
        present = [name for name in names if f"{name}.weight" in sources]  # others are new, and stay float
        for name in present:
            source = sources[f"{name}.weight"]
            if source.dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"{source.file}: {name}.weight is {source.dtype}, which cannot be quantized; it must be one of "
                    f"{', '.join(FLOAT_DTYPES)}"
                )
        return present

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether a parameter of the model is to be quantized from a float tensor of the checkpoint."""
        if self.pre_quantized:
            return False
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self) -> QuantizeWeight:
        """Returns the operation for one weight."""
        return QuantizeWeight(self._problems)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Adds our conversions to those of the model."""
        conversions = super().update_weight_conversions(weight_conversions, model)
        if not self.pre_quantized:
            leaves = sorted({name.rpartition(".")[2] for name, _ in int8_layers(model)})
            pattern = rf"({'|'.join(map(re.escape, leaves))})\.weight"
            return [*conversions, WeightConverter(pattern, r"\1.weight", [Identity()])]
        stored_as = format_named(self.quantization_config.checkpoint_format)
        return [*conversions, *format_conversions.loading_conversions(stored_as, self._tensors, conversions)]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self._problems:
            more = f" ({len(self._problems)} weights have such problems)" if len(self._problems) > 1 else ""
            raise CheckpointError(f"{self._problems[0]}{more}")
        for name, layer in int8_layers(model):
            for leaf, tensor in layer.named_parameters():
                if tensor.is_meta or getattr(tensor, "_is_hf_initialized", False):
                    continue
                if leaf != "bias" or self.pre_quantized:
                    raise CheckpointError(f"{name}.{leaf} is missing in the checkpoint")
                nn.init.zeros_(tensor)  # as transformers does for a float layer, with its warning
        self._quantize_tied_heads(model)
        speed_up(model)
        # What this load has mapped, and nobody has seen yet.
        mapped_files.give_back(mapped_files.mappings(self._files) - self._mapped_before)
        heap.give_back()
        self._tensors, self._files, self._mapped_before = {}, (), set()
        attach(model, self)

    def _quantize_tied_heads(self, model: PreTrainedModel) -> None:
        """Gives the heads in `include_modules` that are tied to an embedding an int8 copy of its weight."""
        if self.pre_quantized:
            return
        config = self.quantization_config
        for name, layer, int8 in tied_heads_to_quantize(model, config):
            if layer.weight.is_meta:
                raise ValueError(f"the tied layer {name} cannot be quantized while it is offloaded")
            replace_module(model, name, int8.from_float(layer, config.for_layer(name)))

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        # transformers turns config.dtype into a string when it saves
        return dequantize_(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)

    def is_serializable(self) -> bool:
        """Whether the model can be saved: always."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on top: gradients flow through the layers to their input."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` makes one graph of the model: it does."""
        return True


def attach(model: PreTrainedModel, quantizer: Int8HfQuantizer | None = None) -> None:
    """Makes a model with int8 layers, as they are now, one that transformers saves and loads again as int8.

    Args:
        model: Quantized by `from_pretrained` or by `quantize_`.
        quantizer: The one that loaded it; a new one with the settings of the first layer if None.
    """
    if quantizer is None:
        quantizer = Int8HfQuantizer(next(int8_layers(model))[1].int8_config, pre_quantized=True)
        model.hf_quantizer = quantizer
        model.is_quantized = True
        model.quantization_method = Int8Config.quant_method
    quantizer.quantization_config = _with_settings_of_layers(quantizer.quantization_config, model)
    model.config.quantization_config = quantizer.quantization_config
    untie_int8_heads(model)
    stored_as = format_named(quantizer.quantization_config.checkpoint_format)
    ours = format_conversions.saving_conversions(stored_as, model)
    # A tensor gets one conversion: an int8 weight ours, so it is saved under its name in the model.
    weights = [f"{name}.weight" for name, _ in int8_layers(model)]
    model._weight_conversions = [c for c in without_ours(model) if not _reverses(c, weights)] + ours


def detach(model: nn.Module) -> None:
    """Makes a model without int8 layers one that transformers saves as float, if it was one of ours.

    Args:
        model: Any module.
    """
    slow_down(model)
    if isinstance(getattr(model, "hf_quantizer", None), Int8HfQuantizer):
        model._weight_conversions = without_ours(model)  # type: ignore[assignment]
        model.hf_quantizer.remove_quantization_config(model)  # type: ignore[operator, union-attr]


def speed_up(model: nn.Module) -> None:
    """Prepares a transformers model with int8 layers for a CPU; on other devices it is as before.

    Args:
        model: Any module.
    """
    if isinstance(model, PreTrainedModel):
        stream_head(model)
        fuse(model)
        forward_pass.watch(model)


def slow_down(model: nn.Module) -> None:
    """Undoes `speed_up`, but for the watch over threads, which changes nothing for a float model.

    Args:
        model: Any module.
    """
    if isinstance(model, PreTrainedModel):
        unfuse(model)
        for module in model.modules():
            if type(module) is FloatLinear:
                module.__class__ = nn.Linear  # type: ignore[assignment]


def stream_head(model: PreTrainedModel) -> None:
    """Makes a head that was left in 16 bit fast for one token on a CPU; its weights and their names stay."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = FloatLinear


def untie_int8_heads(model: PreTrainedModel) -> None:
    """Forgets that a head was tied to an embedding once it has an int8 weight of its own.

    `config.tie_word_embeddings` stays, since other weights may be tied by it; when the checkpoint is loaded again, the
    scale in it tells that the head has its own weight.
    """
    for name, layer in _tied_layers(model):
        if isinstance(layer, Int8Linear):
            del model.all_tied_weights_keys[f"{name}.weight"]


def tied_heads_to_quantize(
    model: PreTrainedModel, config: Int8Config
) -> Iterator[tuple[str, nn.Module, type[Int8Linear]]]:
    """Yields the layers tied to an embedding that get an int8 weight of their own once the model is loaded.

    Args:
        model: With its weights tied.
        config: Settings, whose `include_modules` asks for them.

    Yields:
        The name, the float layer and the class of its int8 form.
    """
    for name, layer in _tied_layers(model):
        if (int8 := int8_class(layer)) is not None and matches(name, config.include_modules):
            yield name, layer, int8


def without_ours(model: nn.Module) -> list[Any]:
    """Returns the conversions of a model but for those of this package."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:  # made without from_pretrained: what transformers itself would take in that case
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [c for c in mapping if not isinstance(c, PrefixChange)]
    ours = (Identity, ReadScale, RenameWeight, Unflatten)
    return [c for c in conversions if not any(isinstance(op, ours) for op in getattr(c, "operations", ()))]


def _names_in_model(model: PreTrainedModel, tensors: Iterable[str]) -> dict[str, list[str]]:
    """For each tensor of a checkpoint, the parameters of the model that are made from it."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    expected = model.state_dict()
    names = {}
    for key in tensors:
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
        made = [name]
        if pattern is not None:
            patterns = next(c.target_patterns for c in converters if pattern in c.source_patterns)
            made = [name.replace(patterns[0], target) for target in patterns]
        names[key] = [name for name in made if name in expected]
    return names


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


def _warn_of_experts(model: PreTrainedModel) -> None:
    """Says that fused experts, which are not linear layers, stay as they are: most of a mixture-of-experts model."""
    experts = [p for name, p in model.named_parameters() if p.dim() == 3 and "experts" in name]
    if experts:
        share = sum(p.numel() for p in experts) / sum(p.numel() for p in model.parameters())
        warnings.warn(
            f"{len(experts)} fused expert weights, {share:.0%} of the parameters of {type(model).__name__}, are not "
            "quantized: only linear layers are",
            stacklevel=2,
        )


def _tied_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose weight is that of another, by name."""
    for key in list(getattr(model, "all_tied_weights_keys", None) or {}):
        name, _, leaf = key.rpartition(".")
        if leaf == "weight":
            yield name, model.get_submodule(name)
