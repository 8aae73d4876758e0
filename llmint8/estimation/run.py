"""What a model takes besides its weights while it runs: a prefill and the token after it, followed on the meta device.

Nothing is computed. The model's own code allocates and frees tensors of the right shapes, so the cache is what
transformers keeps for this model (with grouped heads, windows, latent attention, states, ...), and the workspace is the
most that is there at any time. What operators take inside is added by `workspace`. Layers of one kind take the
same, so of long models only the first layers of all kinds are run.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from llmint8.estimation.allocations import follow
from llmint8.estimation.workspace import Device

# Whatever it is that a model wants and does not get without data.
_ERRORS = (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class UnknownRunError(ValueError):
    """A model cannot be run without data, or not by its tokens alone."""


@dataclass(frozen=True)
class Run:
    """The memory of a run, in bytes.

    Attributes:
        kv_cache: Keys and values, or states, of all layers once all tokens are read.
        workspace: The most that is there besides the weights and `kv_cache`.
    """

    kv_cache: int
    workspace: int


def runs(model: PreTrainedModel, contexts: Sequence[int], batch: int, device: Device) -> list[Run]:
    """Follows a prefill and a decode step as `generate` does them, or one pass of a model that does not generate.

    An encoder-decoder reads as many tokens as `contexts` say, and its cache is full of as many that it has written.

    Args:
        model: On the meta device.
        contexts: Tokens of a sequence, at least 1, each for a run of its own.
        batch: Sequences, at least 1.
        device: Where it is to run.

    Raises:
        UnknownRunError: It cannot be followed.
    """
    if model.main_input_name != "input_ids":
        raise UnknownRunError(f"{type(model).__name__} reads {model.main_input_name}, not tokens")
    try:
        with _first_layers(model) as kinds:
            return [_run(model, context, batch, device, kinds) for context in contexts]
    except _ERRORS:  # it does not go with fewer layers
        try:
            return [_run(model, context, batch, device, []) for context in contexts]
        except _ERRORS as error:
            first_line = str(error).strip().partition("\n")[0]
            raise UnknownRunError(f"{type(model).__name__} does not run without data: {first_line}") from error


def _run(model: PreTrainedModel, context: int, batch: int, device: Device, kinds: Sequence[list[int]]) -> Run:
    tokens = torch.empty(batch, context, dtype=torch.long, device="meta")
    one = tokens[:, :1]
    encoder_decoder = bool(model.config.is_encoder_decoder)
    few_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    existing = [*model.parameters(), *model.buffers(), tokens]
    with follow(device, existing) as record:
        inputs = {"input_ids": tokens, "decoder_input_ids": one} if encoder_decoder else {"input_ids": tokens}
        output = model(**inputs, **few_logits)
        cache = _cache_of(output)
        if cache is None:
            return Run(0, record.peak())
        last_logits = output.logits[:, -1].float() if "logits" in output else None
        kept = _Kept(cache, kinds)
        prefill = record.peak(without=record.numbers_of(kept.tensors)) + kept.allocated - kept.used
        del output, last_logits
        decode = 0
        if not encoder_decoder:  # whose token after the prompt is the prefill
            before, start = record.numbers_of(kept.tensors), record.mark()
            key = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
            model(input_ids=one, **{key: cache})
            after = _Kept(cache, kinds)
            # A layer's old keys and values go once there are new ones, with another token or with room for many.
            passing = record.peak(start, before | record.numbers_of(after.tensors))
            decode = passing + after.allocated - kept.used + kept.largest_layer
    if encoder_decoder:
        kept = _filled(model, tokens, device, kinds)
    return Run(kept.used, max(prefill, decode))


def _filled(model: PreTrainedModel, tokens: Tensor, device: Device, kinds: Sequence[list[int]]) -> "_Kept":
    """The cache of a decoder that has written as much as its encoder has read."""
    with follow(device, []):
        return _Kept(_cache_of(model(input_ids=tokens, decoder_input_ids=tokens)), kinds)


def _cache_of(output: Any) -> Any:
    for name in ("cache", "past_key_values", "cache_params"):
        if name in output and output[name] is not None:
            return output[name]
    return None


class _Kept:
    """What a cache keeps.

    Attributes:
        tensors: Keys, values and states of the layers that were run.
        used: Bytes of them, and of layers of the same kinds that were not run.
        allocated: Bytes of the storages that they lie in, likewise.
        largest_layer: Bytes of the largest layer.
    """

    def __init__(self, cache: Any, kinds: Sequence[list[int]]) -> None:
        self.tensors: list[Tensor] = []
        self.used = self.allocated = self.largest_layer = 0
        parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
        for part in [part for part in parts if part is not None] or [cache]:
            layers = [list(_tensors_of(layer)) for layer in part.layers]
            self.tensors += [tensor for layer in layers for tensor in layer]
            of_stack = next((first for first in reversed(kinds) if len(first) == len(layers)), None)
            if of_stack is None and kinds:
                raise ValueError(f"its cache has {len(layers)} layers, which are those of no part of it")
            for i, layer in enumerate(part.layers):
                # A layer that was not run has what the first of its kind has, unless it reads the cache of another.
                stand_in = i if of_stack is None else of_stack[i]
                tensors = layers[stand_in if type(layer) is type(part.layers[stand_in]) else i]
                storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
                self.used += sum(t.nbytes for t in tensors)
                self.allocated += sum(storages.values())
                self.largest_layer = max(self.largest_layer, sum(storages.values()))


def _tensors_of(layer: Any) -> Iterable[Tensor]:
    """The tensors that a layer of a cache keeps on the device, wherever its class has them."""
    for value in tree_iter(list(vars(layer).values())):
        if isinstance(value, Tensor) and value.is_meta and value.dim() > 0:  # a window keeps its length in a scalar
            yield value


@contextlib.contextmanager
def _first_layers(model: PreTrainedModel) -> Iterator[list[list[int]]]:
    """Leaves a model its first layers, as many as it takes to have one of each kind, and one that comes after others.

    Yields:
        For each stack of layers, in their order, the first layer of the kind of each.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    }
    kinds = [_kinds(stack, model.config) for stack in stacks.values()]
    try:
        for (name, stack), first in zip(stacks.items(), kinds, strict=True):
            _replace(model, name, stack[: max(first) + 2])
        yield kinds
    finally:
        for name, stack in stacks.items():
            _replace(model, name, stack)


def _kinds(stack: nn.ModuleList, config: Any) -> list[int]:
    """For each layer of a stack, the first one with the same modules, shapes and kind of attention."""
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    first: dict[Any, int] = {}
    kinds = []
    for i, layer in enumerate(stack):
        modules = tuple(
            (name, type(module), getattr(module, "sliding_window", None)) for name, module in layer.named_modules()
        )
        shapes = tuple((name, p.shape) for name, p in layer.named_parameters() if not name.endswith("column_scale"))
        kind = (modules, shapes, types[i] if len(types) == len(stack) else None)
        kinds.append(first.setdefault(kind, i))
    return kinds


def _replace(model: nn.Module, name: str, stack: nn.ModuleList) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, stack)
