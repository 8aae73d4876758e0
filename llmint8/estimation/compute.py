"""`estimate`: what `llmint8 estimate` prints."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from llmint8.checkpoints.source import Source, find_source
from llmint8.config import Int8Config
from llmint8.estimation.cards import CARDS
from llmint8.estimation.longest import contexts_to_try, longest_context
from llmint8.estimation.result import Estimate, Fit, Footprint
from llmint8.estimation.run import UnknownRunError, runs
from llmint8.estimation.weights import count_weights, largest_float_weight
from llmint8.estimation.workspace import Device
from llmint8.integrations.transformers.skeleton import skeleton

DEFAULT_CONTEXT = 4096
# Tried for models that do not say how many positions they have.
_LONGEST = 131072
_WITHOUT_GPU = 80


def estimate(
    path: str | os.PathLike,
    config: Int8Config | None = None,
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: torch.dtype | str | None = None,
    device: str = "cuda",
    auto_class: type | str | None = None,
    trust_remote_code: bool = False,
) -> Estimate:
    """Tells how much memory a model takes in 8 bit and unquantized, without loading it.

    Weights are exact: the model is built without data by the class, the rules for dtypes and the choice of layers that
    `from_pretrained` uses, and an int8 checkpoint counts as it is. One thing is not known before 16-bit weights are
    read: whether a layer gets a `column_scale` (4 bytes for each of its input features, in few layers of few models).
    The cache and the workspace are those of `generate`: all tokens at once, then one more; see `estimation.run`.

    Args:
        path: A folder, a `config.json`, or a name on the Hugging Face hub, of which only the configuration is read.
        config: Settings; those of an int8 checkpoint, or the default ones, if None.
        context: Tokens of a sequence; 4096, or as many as the model was made for if that is less, if None.
        batch: Sequences.
        dtype: Dtype of activations and of what is not int8; that of the checkpoint if None.
        device: Where it is to run, `"cuda"` or `"cpu"`: their operators have workspaces of different sizes. On a GPU
            that is the one here or, without one, one of compute capability 8.0; each of `cards` counts its own.
        auto_class: As in `from_pretrained`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        OSError: There is no such model, or it has no configuration.
        ValueError: An argument is out of range, or transformers does not know the model.
        TypeError: `context` or `batch` is not an int.
    """
    _check(context, batch, device)
    source = find_source(path, config, dtype, trust_remote_code)
    int8, plain = (skeleton(source, quantize, auto_class, trust_remote_code) for quantize in (True, False))
    most = _max_context(source.config)
    if context is None:
        context = min(DEFAULT_CONTEXT, most or DEFAULT_CONTEXT)
    notes = [*source.notes, *_notes(source, context, most, device)]
    # 16-bit weights are quantized one at a time.
    on_top = 0 if source.is_int8 else largest_float_weight(int8, source.dtype)
    contexts = contexts_to_try(max(most or _LONGEST, context), context, _window(source.config))
    where = Device(device, _architecture() if device == "cuda" else None)
    footprints = [_footprint(int8, on_top, context, batch, where, notes)]
    footprints.append(_footprint(plain, 0, context, batch, where, notes))
    # Unquantized, a model takes the same on all GPUs.
    on_gpus = _on_gpus(int8, contexts, batch)
    plain_on_gpus = dict.fromkeys(on_gpus, _on_gpu(plain, contexts, batch, _WITHOUT_GPU))
    return Estimate(
        model=os.fspath(path),
        architecture=type(plain).__name__,
        dtype=str(source.dtype).removeprefix("torch."),
        device=device,
        context=context,
        batch=batch,
        max_context=most,
        parameters=sum(p.numel() for p in plain.parameters()),
        int8=footprints[0],
        unquantized=footprints[1],
        cards=_fits(contexts, (on_gpus, plain_on_gpus), context, most, footprints),
        notes=tuple(dict.fromkeys(notes)),
    )


def _check(context: object, batch: object, device: str) -> None:
    for name, value in (("context", 1 if context is None else context), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device must be 'cuda' or 'cpu', got {device!r}")


def _notes(source: Source, context: int, most: int | None, device: str) -> Iterator[str]:
    if most is not None and context > most:
        yield f"a context of {context} is beyond the {most} positions that the model was made for"
    if not source.is_int8:
        yield "a column_scale, which few layers of few models get, is not counted: it depends on the weights"
    if device == "cpu":
        yield (
            "malloc may keep what is freed, some 100 MB or more of it; with MALLOC_MMAP_THRESHOLD_=262144 in the "
            "environment it gives it back"
        )


def _footprint(
    model: PreTrainedModel, on_top: int, context: int, batch: int, device: Device, notes: list[str]
) -> Footprint:
    """What a model takes; a note says so if that is not known."""
    weights = count_weights(model)
    try:
        needed = runs(model, [context], batch, device)[0]
    except UnknownRunError as error:
        notes.append(f"cache and workspace are not known: {error}")
        return Footprint(weights, None, None, weights.total + on_top)
    return Footprint(weights, needed.kv_cache, needed.workspace, weights.total + on_top)


def _architecture() -> int | str:
    """The architecture of the GPU that is here; without one, that of those whose tensor cores multiply int8."""
    from llmint8.kernels.triton import tiles

    return tiles.architecture(torch.device("cuda", 0)) if torch.cuda.is_available() else _WITHOUT_GPU


def _on_gpus(model: PreTrainedModel, contexts: Sequence[int], batch: int) -> dict[int | str, list[int] | None]:
    """What `_on_gpu` finds for the architectures of all cards; those that need the same are followed once."""
    from llmint8.kernels.triton.workspace import decides

    found: dict[Any, list[int] | None] = {}
    for architecture in dict.fromkeys(card.architecture for card in CARDS):
        if (key := decides(architecture)) not in found:
            found[key] = _on_gpu(model, contexts, batch, architecture)
    return {card.architecture: found[decides(card.architecture)] for card in CARDS}


def _on_gpu(model: PreTrainedModel, contexts: Sequence[int], batch: int, architecture: int | str) -> list[int] | None:
    """What each context takes on a GPU besides the weights; None if it is not known."""
    try:
        needs = runs(model, contexts, batch, Device("cuda", architecture))
        return [needed.kv_cache + needed.workspace for needed in needs]
    except UnknownRunError:
        return None


def _fits(
    contexts: Sequence[int],
    besides_weights: Sequence[Mapping[int | str, list[int] | None]],
    context: int,
    most: int | None,
    footprints: Sequence[Footprint],
) -> tuple[Fit, ...]:
    """Whether each card has room for loading, and for what the contexts take besides the weights if that is known."""
    fits = []
    for card in CARDS:
        fit: list[bool] = []
        longest: list[int | None] = []
        for by_architecture, footprint in zip(besides_weights, footprints, strict=True):
            besides = by_architecture[card.architecture]
            free = card.usable - footprint.weights.total
            loads = footprint.loading <= card.usable
            if besides is None:
                fit.append(loads)
                longest.append(None)
            else:
                found = longest_context(free, contexts, besides) if loads else 0
                fit.append(loads and besides[contexts.index(context)] <= free)
                longest.append(found if most is None else min(found, most))
        fits.append(Fit(card, fit[0], fit[1], longest[0], longest[1]))
    return tuple(fits)


def _window(config: Any) -> int | None:
    """The length at which sliding windows stop to grow."""
    found = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    return found if isinstance(found, int) else None


def _max_context(config: Any) -> int | None:
    """Returns how many positions a model was made for; None if its configuration does not say."""
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
