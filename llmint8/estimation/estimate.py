"""`estimate`: what `llmint8 estimate` prints."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from llmint8.config import Int8Config
from llmint8.estimation.cards import CARDS
from llmint8.estimation.longest import contexts_to_try, longest_context
from llmint8.estimation.result import Estimate, Fit, Footprint
from llmint8.estimation.run import UnknownRunError, runs
from llmint8.estimation.skeleton import max_context, skeleton
from llmint8.estimation.source import find
from llmint8.estimation.weights import count_weights, largest_float_weight

DEFAULT_CONTEXT = 4096
# Tried for models that do not say how many positions they have.
_LONGEST = 131072


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
        dtype: Of activations and of what is not int8; that of the checkpoint if None.
        device: Where it is to run, `"cuda"` or `"cpu"`: their operators have workspaces of different sizes.
        auto_class: As in `from_pretrained`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        OSError: There is no such model, or it has no configuration.
        ValueError: An argument is out of range, or transformers does not know the model.
        TypeError: `context` or `batch` is not an int.
    """
    for name, value in (("batch", batch), ("context", context)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device must be 'cuda' or 'cpu', got {device!r}")
    source = find(path, config, dtype, trust_remote_code)
    notes = list(source.notes)
    models = [skeleton(source, quantize, auto_class, trust_remote_code) for quantize in (True, False)]
    most = max_context(source.config)
    if context is None:
        context = min(DEFAULT_CONTEXT, most or DEFAULT_CONTEXT)
    elif most is not None and context > most:
        notes.append(f"a context of {context} is beyond the {most} positions that the model was made for")
    weights = [count_weights(model) for model in models]
    if not source.is_int8:
        notes.append("a column_scale, which few layers of few models get, is not counted: it depends on the weights")
    if device == "cpu":
        notes.append(
            "malloc may keep some of what is freed, up to a tenth of these figures more; MALLOC_MMAP_THRESHOLD_=262144 "
            "in the environment lets it go"
        )
    loading = weights[0].total + (0 if source.is_int8 else largest_float_weight(models[0], source.dtype))
    contexts = contexts_to_try(max(most or _LONGEST, context), context, _window(source.config))
    footprints, on_cards = [], []
    for model, counted, at_load in zip(models, weights, (loading, weights[1].total), strict=True):
        needed = totals = None
        try:
            on_gpu = runs(model, contexts, batch, "cuda")
            totals = [counted.total + run.kv_cache + run.workspace for run in on_gpu]
            at = contexts.index(context)
            needed = on_gpu[at] if device == "cuda" else runs(model, [context], batch, device)[0]
        except UnknownRunError as error:
            notes.append(f"cache and workspace are not known: {error}")
        footprints.append(Footprint(counted, needed and needed.kv_cache, needed and needed.workspace, at_load))
        on_cards.append(totals)
    return Estimate(
        model=os.fspath(path),
        architecture=type(models[1]).__name__,
        dtype=str(source.dtype).removeprefix("torch."),
        device=device,
        context=context,
        batch=batch,
        max_context=most,
        parameters=sum(p.numel() for p in models[1].parameters()),
        int8=footprints[0],
        unquantized=footprints[1],
        cards=_fits(contexts, on_cards, context, most, footprints),
        notes=tuple(dict.fromkeys(notes)),
    )


def _fits(
    contexts: Sequence[int],
    totals: Sequence[list[int] | None],
    context: int,
    most: int | None,
    footprints: Sequence[Footprint],
) -> tuple[Fit, ...]:
    """Whether the weights fit each card, with what the contexts take besides if that is known."""
    fits = []
    for card in CARDS:
        fit: list[bool] = []
        longest: list[int | None] = []
        for known, footprint in zip(totals, footprints, strict=True):
            fit.append((footprint.total if known is None else known[contexts.index(context)]) <= card.usable)
            found = None if known is None else longest_context(card.usable, contexts, known)
            longest.append(found if found is None or most is None else min(found, most))
        fits.append(Fit(card, fit[0], fit[1], longest[0], longest[1]))
    return tuple(fits)


def _window(config: Any) -> int | None:
    """The length at which sliding windows stop to grow."""
    found = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    return found if isinstance(found, int) else None
