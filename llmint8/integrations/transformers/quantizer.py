"""`Int8HfQuantizer`: what transformers calls while it loads, saves or dequantizes a model of ours."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8.checkpoint import FLOAT_DTYPES, SCALE_NAMES, CheckpointError, TensorInfo, check_scales, read_headers
from llmint8.config import Int8Config
from llmint8.integrations.transformers import tripwire
from llmint8.integrations.transformers.conversions import (
    BITSANDBYTES_FORMAT,
    BITSANDBYTES_SCALE,
    Identity,
    QuantizeWeight,
    ReadBitsandbytesScale,
)
from llmint8.integrations.transformers.cpu_inference import use_cpu_operators
from llmint8.integrations.transformers.names import names_in_model
from llmint8.integrations.transformers.saved_state import prepare_for_saving
from llmint8.integrations.transformers.tied_heads import quantize_tied_heads, tied_layers, untie_int8_heads
from llmint8.nn import Int8Linear
from llmint8.nn.forms import int8_form, is_int8
from llmint8.ops import INPUT_DTYPES
from llmint8.quantize import dequantize_, int8_layers, layers_to_quantize, replace_module
from llmint8.runtime import heap, mapped_files


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
            int8 = int8_form(layer)
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
            rf"{re.escape(BITSANDBYTES_FORMAT)}$",
            r"\.outlier_columns$",  # of a static checkpoint that is loaded in another mode
        }

    def _int8_layers_of_checkpoint(self, model: PreTrainedModel) -> dict[str, str]:
        """The layers with a scale in the checkpoint: their names in the model, and there."""
        check_scales(self._tensors)
        targets = names_in_model(model, self._tensors)
        names: dict[str, str] = {}
        for key in self._tensors:
            stem, _, leaf = key.rpartition(".")
            if leaf in SCALE_NAMES.values():
                # A part that this class of model does not have has no target.
                names |= {target.removesuffix(".weight"): stem for target in targets[f"{stem}.weight"]}
        return names

    def _layers_to_quantize(self, model: PreTrainedModel) -> list[str]:
        """The layers with a float weight in the checkpoint that the settings want in int8."""
        tied = {name for name, _ in tied_layers(model)}  # quantized once they are tied
        names = [name for name in layers_to_quantize(model, self.quantization_config) if name not in tied]
        if not self._tensors:
            return names
        sources: dict[str, TensorInfo] = {}
        for key, targets in names_in_model(model, self._tensors).items():
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
        return is_int8(module) and name == "weight"

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
        if self.quantization_config.checkpoint_format == "bitsandbytes":
            return [*conversions, bitsandbytes_conversion()]
        return [*conversions, *tripwire.loading_conversions(self._tensors, conversions)]

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
        use_cpu_operators(model)
        # What this load has mapped, and nobody has seen yet.
        mapped_files.unload(mapped_files.mappings(self._files) - self._mapped_before)
        heap.trim()
        self._tensors, self._files, self._mapped_before = {}, (), set()
        prepare_for_saving(model, self)

    def _quantize_tied_heads(self, model: PreTrainedModel) -> None:
        """Gives the heads in `include_modules` that are tied to an embedding an int8 copy of its weight."""

        def make(name: str, layer: nn.Module, form: type[Int8Linear]) -> Int8Linear:
            if layer.get_parameter("weight").is_meta:
                raise ValueError(f"the tied layer {name} cannot be quantized while it is offloaded")
            return form.from_float(layer, self.quantization_config.for_layer(name))

        if not self.pre_quantized:
            quantize_tied_heads(model, self.quantization_config, make)

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


def bitsandbytes_conversion() -> WeightConverter:
    """Returns the conversion between the scales of bitsandbytes and ours."""
    return WeightConverter([BITSANDBYTES_SCALE, BITSANDBYTES_FORMAT], ".weight_scale", [ReadBitsandbytesScale()])


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
