"""The tensors of an int8 checkpoint, each made from the 16-bit one when it is asked for.

The model stays on the meta device. What is loaded together (a weight that is fused from two, say) and what is saved
together makes a unit; transformers' loading and the reverse of it run on one unit at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig, PreTrainedModel, remove_tied_weights_from_state_dict
from transformers.utils import logging

from llmint8.checkpoints.formats import format_named
from llmint8.checkpoints.headers import CheckpointError
from llmint8.checkpoints.source import Source
from llmint8.integrations.transformers.conversions import FindColumnScale, QuantizeWeight
from llmint8.integrations.transformers.quantizer import Int8HfQuantizer
from llmint8.integrations.transformers.saved_state import prepare_for_saving
from llmint8.integrations.transformers.skeleton import empty_model
from llmint8.integrations.transformers.tied_heads import quantize_tied_heads
from llmint8.nn import Int8Linear
from llmint8.nn.forms import int8_form, is_int8
from llmint8.quantize import int8_layers
from llmint8.runtime import mapped_files


@dataclass(frozen=True)
class Unit:
    """Tensors that are read, converted and written together.

    Attributes:
        sources: Their names in the 16-bit checkpoint.
        params: Their names in the model.
        saved: Their names in the int8 checkpoint, with shapes and dtypes (on the meta device).
    """

    sources: tuple[str, ...]
    params: tuple[str, ...]
    saved: dict[str, Tensor]


class StreamedWeights:
    """The weights that a model would be saved with if it were loaded in 8 bit.

    Attributes:
        model: On the meta device, with the configuration that it would be saved with.
        saved: All tensors of the int8 checkpoint, on the meta device, in the order in which they are saved.
        units: The same in parts.
    """

    model: PreTrainedModel
    saved: dict[str, Tensor]
    units: list[Unit]

    def __init__(self, source: Source, auto_class: type | str | None = None, trust_remote_code: bool = False) -> None:
        """Prepares the model; of the weights only what decides about names and shapes is read.

        Args:
            source: A 16-bit checkpoint whose files are here.
            auto_class: As in `from_pretrained`.
            trust_remote_code: Whether code that comes with the model may run.

        Raises:
            CheckpointError: A weight is missing, or has the wrong shape or dtype.
            ValueError: The settings do not fit the model, or there is nothing to quantize.
        """
        self._quantizer = _Quantizer(source.settings, pre_quantized=False)
        self.model = empty_model(source, self._quantizer, auto_class, trust_remote_code)
        mapped = mapped_files.mappings(source.files)
        self._slices = _slices(source)
        self._mapped = mapped_files.mappings(source.files) - mapped
        mapping = get_model_conversion_mapping(self.model, None, self._quantizer)
        self._loading = LoadStateDictConfig(
            hf_quantizer=self._quantizer,
            dtype=source.dtype,
            dtype_plan=self.model._get_dtype_plan(source.dtype),
            weight_mapping=mapping,
        )
        loads = self._what_is_loaded_together(mapping)
        self._find_column_scales(loads)
        self.model.tie_weights(recompute_mapping=False)
        self._tied = self._quantize_tied_heads(loads)
        # What loading keeps for saving; `prepare_for_saving` adds ours.
        self.model._weight_conversions = [conversion for conversion in mapping if conversion.was_used()]
        self.model.hf_quantizer, self.model.is_quantized = self._quantizer, True
        if format_named(source.settings.checkpoint_format).lists_float_layers:
            self._say_which_layers_are_float()
        prepare_for_saving(self.model, self._quantizer)
        self._empty = self.model.state_dict(keep_vars=True)
        state = self._state_to_save()
        self.saved = revert_weight_conversion(self.model, state)
        self.units = self._units(state, loads)

    def tensors(self, unit: Unit) -> dict[str, Tensor]:
        """Reads and quantizes the tensors of a unit.

        Args:
            unit: One of `units`.

        Returns:
            Tensors by their names in the int8 checkpoint; some are views of the mapped 16-bit one.

        Raises:
            CheckpointError: A weight has no int8 form, or another shape than the model.
        """
        loaded = self._load(unit.sources)
        for name, (source, layer) in self._tied.items():
            if f"{name}.weight" in unit.params:
                loaded |= self._quantized_head(name, layer, loaded[source])
        tensors = revert_weight_conversion(self.model, {name: loaded[name] for name in unit.params})
        for name, expected in unit.saved.items():
            got = tensors[name]
            if got.shape != expected.shape or got.dtype != expected.dtype:
                raise CheckpointError(
                    f"{name} should be {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
                )
        return tensors

    def release(self) -> None:
        """Unloads the pages of the 16-bit checkpoint that were read; tensors that are views of it read them again."""
        mapped_files.unload(self._mapped)

    def _what_is_loaded_together(self, mapping: list[Any]) -> dict[tuple[str, ...], list[str]]:
        """Parameters of the model -> the tensors of the checkpoint that they are made from."""
        renamings = [c for c in mapping if isinstance(c, WeightRenaming)]
        converters = [c for c in mapping if isinstance(c, WeightConverter)]
        targets = {pattern: c.target_patterns for c in converters for pattern in c.source_patterns}
        expected = self.model.state_dict()
        loads: dict[tuple[str, ...], list[str]] = {}
        for key in sorted(self._slices, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, self.model.base_model_prefix, expected)
            if name not in expected and key in expected:
                name, pattern = key, None
            made = [name] if pattern is None else [name.replace(targets[pattern][0], t) for t in targets[pattern]]
            if present := tuple(name for name in made if name in expected):
                loads.setdefault(present, []).append(key)
        return loads

    def _find_column_scales(self, loads: dict[tuple[str, ...], list[str]]) -> None:
        """Gives the layers whose weights need a `column_scale` a place for it: the first look at the weights."""
        weights = {f"{name}.weight" for name, _ in int8_layers(self.model)}
        self._empty = self.model.state_dict(keep_vars=True)
        self._quantizer.planning = True
        for params, sources in loads.items():
            if not weights.isdisjoint(params):
                self._load(sources)
                self.release()
        self._quantizer.planning = False

    def _quantize_tied_heads(self, loads: dict[tuple[str, ...], list[str]]) -> dict[str, tuple[str, Int8Linear]]:
        """Replaces the tied heads that are to be int8: name -> the parameter with its weight, and the int8 layer."""
        tied = dict(self.model.all_tied_weights_keys or {})
        made: dict[str, tuple[str, Int8Linear]] = {}
        config = self._quantizer.quantization_config

        def make(name: str, layer: nn.Module, form: type[Int8Linear]) -> Int8Linear:
            source = tied[f"{name}.weight"]
            sources = next((keys for params, keys in loads.items() if source in params), None)
            if sources is None:
                raise CheckpointError(f"{source} is missing in the checkpoint")
            head = form.empty_like(layer, config.for_layer(name))
            column_scale = head.column_scale_for(self._load(sources)[source])
            head.set_column_scale(None if column_scale is None else torch.empty_like(column_scale, device="meta"))
            made[name] = (source, head)
            return head

        quantize_tied_heads(self.model, config, make)
        return made

    @staticmethod
    def _quantized_head(name: str, layer: Int8Linear, weight: Tensor) -> dict[str, Tensor]:
        try:
            codes, scale, column_scale = layer.quantized(weight, f"{name}.weight")
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        tensors = {f"{name}.weight": codes, f"{name}.weight_scale": scale}
        return tensors if column_scale is None else {**tensors, f"{name}.column_scale": column_scale}

    def _say_which_layers_are_float(self) -> None:
        """Lists the layers that stay float, for formats that decide by that list which are int8."""
        kept = [name for name, module in self.model.named_modules() if int8_form(module) is not None]
        config = self._quantizer.quantization_config
        self._quantizer.quantization_config = config.replace(skip_modules=kept, include_modules=())

    def _state_to_save(self) -> dict[str, Tensor]:
        """What transformers saves of a model, by names in the model."""
        state = self.model.state_dict()
        for name in self.model._keys_to_ignore_on_save or ():
            state.pop(name, None)
        return remove_tied_weights_from_state_dict(state, self.model)

    def _units(self, state: dict[str, Tensor], loads: dict[tuple[str, ...], list[str]]) -> list[Unit]:
        parts = _Partition(state)
        source_of: dict[str, list[str]] = {}
        for params, sources in loads.items():
            layers = {name.removesuffix("weight") for name in params if is_int8(self._owner(name))}
            made = [*params, *(f"{layer}{leaf}" for layer in layers for leaf in ("weight_scale", "column_scale"))]
            kept = [name for name in made if name in state]
            parts.join(kept)
            source_of |= dict.fromkeys(kept, sources)
        for name, (source, _) in self._tied.items():
            made = [key for key in state if key.startswith(f"{name}.")]
            parts.join([*made, source])
            source_of |= dict.fromkeys(made, source_of[source])
        if missing := [name for name in state if name not in source_of]:
            raise CheckpointError(
                f"{missing[0]} is missing in the checkpoint (as are {len(missing) - 1} others); a model with new "
                "weights can be loaded with llmint8.from_pretrained and saved from there"
            )
        for together in self._what_is_saved_together(state):
            parts.join(together)
        units = []
        for names in parts.groups():
            needed = dict.fromkeys(key for name in names for key in source_of[name])
            saved = revert_weight_conversion(self.model, {name: state[name] for name in names})
            units.append(Unit(tuple(needed), tuple(names), saved))
        return units

    def _what_is_saved_together(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Parameters that the reverse conversions take together."""
        reverse = [conversion.reverse_transform() for conversion in (self.model._weight_conversions or ())[::-1]]
        converters = [conversion for conversion in reverse if isinstance(conversion, WeightConverter)]
        renamings = [conversion for conversion in reverse if isinstance(conversion, WeightRenaming)]
        together: dict[str, list[str]] = {}
        for name in names:
            target, pattern = apply_converters(name, converters)
            together.setdefault(target if pattern else apply_renamings(name, renamings), []).append(name)
        yield from together.values()

    def _load(self, sources: Iterable[str]) -> dict[str, Tensor]:
        """What transformers makes of some tensors of the checkpoint, by names in the model, which stays empty."""
        conversions = getattr(self.model, "_weight_conversions", None)
        with no_progress_bars():
            state = {key: self._slices[key] for key in sources}
            info, _ = convert_and_load_state_dict_in_model(self.model, state, self._loading)
        self.model._weight_conversions = conversions  # which it has set to those that it needed
        if self._quantizer.problems:
            raise CheckpointError(self._quantizer.problems[0])
        if info.mismatched_keys:
            name, got, expected = sorted(info.mismatched_keys)[0]
            raise CheckpointError(f"{name} should be {list(expected)}, got {list(got)} in the checkpoint")
        if info.conversion_errors:
            name, message = next(iter(info.conversion_errors.items()))
            raise CheckpointError(f"{name} cannot be converted: {message.strip().splitlines()[-1]}")
        loaded = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if not tensor.is_meta:
                loaded[name] = tensor.detach()
                owner, leaf = self._owner(name), name.rpartition(".")[2]
                kept = owner._parameters if leaf in owner._parameters else owner._buffers
                kept[leaf] = self._empty[name]
        return loaded

    def _owner(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0])


class _Quantizer(Int8HfQuantizer):
    """Quantizes as when a model is loaded, or only looks at the weights.

    Attributes:
        planning: Whether it only looks.
        problems: Messages about weights that have no int8 form.
    """

    planning = False

    @property
    def problems(self) -> list[str]:
        return self._problems

    def get_quantize_ops(self) -> QuantizeWeight | FindColumnScale:
        return FindColumnScale() if self.planning else QuantizeWeight(self._problems)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """No weights, so that `save_pretrained` writes everything else."""
        return {}, {}


class _Partition:
    """Names, in groups that can be joined."""

    def __init__(self, names: Iterable[str]) -> None:
        self._group = {name: [name] for name in names}

    def join(self, names: Iterable[str]) -> None:
        """Makes one group of those that some names are in."""
        groups = {id(self._group[name]): self._group[name] for name in names}
        together = [name for group in groups.values() for name in group]
        self._group |= dict.fromkeys(together, together)

    def groups(self) -> list[list[str]]:
        """All groups, each in the order of the names."""
        order = {name: i for i, name in enumerate(self._group)}
        distinct = {id(group): group for group in self._group.values()}
        return [sorted(group, key=order.__getitem__) for group in distinct.values()]


def _slices(source: Source) -> dict[str, Any]:
    """The tensors of a checkpoint, which are read from the mapped files when they are sliced."""
    found: dict[str, Any] = {}
    for file in source.files:
        opened = safe_open(file, framework="pt", device="cpu", backend="mmap")
        found |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (it is no mapping)
    return found


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from showing a bar for a few tensors."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
