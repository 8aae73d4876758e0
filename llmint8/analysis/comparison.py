"""`compare`: how far a language model is from a reference on the same text, in perplexity, KL and top-1 agreement."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

_CHUNK = 1 << 24  # log-probabilities at once: 64 MiB in fp32, whatever the window and the vocabulary


@dataclass(frozen=True)
class Comparison:
    """A model beside a reference, on the same tokens.

    Attributes:
        tokens: Number of tokens that were predicted.
        perplexity: Perplexity of the model, `exp` of the mean negative log likelihood (Table 1 of the paper).
        reference_perplexity: Perplexity of the reference.
        kl: Mean Kullback-Leibler divergence of the next token, KL(reference || model), in nats per token; of two
            models that agree, 0 up to the rounding of fp32 (some 1e-9).
        kl_standard_error: Standard error of `kl`, from the differences between windows, since tokens of one window
            are not independent; NaN for a single window.
        top1_agreement: Share of tokens whose most probable prediction is the same, 0 to 1.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl: float
    kl_standard_error: float
    top1_agreement: float


class Totals:
    """What a `Comparison` is made of, added up window by window."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._reference_loss = 0.0
        self._agreement = 0
        self._windows: list[tuple[int, float]] = []  # tokens and summed KL of each

    def add(self, logits: Tensor, reference_logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Adds one window.

        Args:
            logits: Logits of the model, floating point [batch, tokens, vocabulary].
            reference_logits: Logits of the reference, same shape, on any device.
            tokens: int64 [batch, tokens]; each but the first is a target.
            mask: [batch, tokens], nonzero where there is a token and not padding; all tokens count if None.

        Raises:
            ValueError: The vocabularies differ, or no token has one before it.
        """
        if logits.shape != reference_logits.shape:
            raise ValueError(
                f"the model has a vocabulary of {logits.shape[-1]} tokens and the reference one of "
                f"{reference_logits.shape[-1]} (logits {list(logits.shape)} and {list(reference_logits.shape)}); "
                "compare models with the same tokenizer and the same size of embeddings"
            )
        counts = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(tokens.device).bool()
        counts = counts[:, 1:] & counts[:, :-1]
        count = int(counts.sum())
        if count == 0:
            raise ValueError(f"a batch of tokens {list(tokens.shape)} has no token that follows another one")
        targets = tokens[:, 1:][counts]
        rows, reference_rows = (x[:, :-1][counts.to(x.device)] for x in (logits, reference_logits))
        divergence = 0.0
        size = max(1, _CHUNK // logits.shape[-1])
        for start in range(0, count, size):
            part = slice(start, start + size)
            ours = rows[part].float().log_softmax(-1)
            theirs = reference_rows[part].to(ours.device).float().log_softmax(-1)
            target = targets[part, None].to(ours.device)
            self._loss -= ours.gather(1, target).double().sum().item()
            self._reference_loss -= theirs.gather(1, target).double().sum().item()
            self._agreement += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            # p log(p / q) - p + q has the same sum, and the rounding of the two logarithms' sums cancels in it.
            p, q = theirs.exp(), ours.exp()
            terms = torch.where(p == 0, 0.0, p * (theirs - ours)) - p + q
            divergence += terms.sum(-1).double().sum().item()
        self._windows.append((count, divergence))

    def comparison(self) -> Comparison:
        """Returns the means over all tokens.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._windows:
            raise ValueError("there are no batches to compare on")
        tokens = sum(count for count, _ in self._windows)
        kl = sum(divergence for _, divergence in self._windows) / tokens
        return Comparison(
            tokens=tokens,
            perplexity=_exp(self._loss / tokens),
            reference_perplexity=_exp(self._reference_loss / tokens),
            kl=kl,
            kl_standard_error=self._standard_error(kl, tokens),
            top1_agreement=self._agreement / tokens,
        )

    def _standard_error(self, kl: float, tokens: int) -> float:
        """Of a ratio of two sums over windows, which may differ in length."""
        n = len(self._windows)
        if n < 2:
            return math.nan
        squares = sum((divergence - count * kl) ** 2 for count, divergence in self._windows)
        return math.sqrt(n / (n - 1) * squares) / tokens


def compare(model: nn.Module, reference: nn.Module, batches: Iterable[Any], *, progress: bool = False) -> Comparison:
    """Compares a causal language model with a reference, such as its 8-bit form with its 16-bit one.

    Log-probabilities are fp32, and those of one batch at a time are in memory.

    Args:
        model: A causal language model of transformers, in any precision and on any device.
        reference: Another one, with the same vocabulary.
        batches: Tokens, int64 [tokens] or [batch, tokens], as `text_windows` makes them, or mappings with `input_ids`
            and, where there is padding, an `attention_mask`.
        progress: Shows a progress bar.

    Raises:
        TypeError: A batch is neither a tensor of tokens nor a mapping with `input_ids`.
        ValueError: There are no batches, one has no token to predict, the vocabularies differ, or a model is in
            training mode.
    """
    for name, module in (("model", model), ("reference", reference)):
        if module.training:
            raise ValueError(f"the {name} is in training mode, where dropout adds noise; call {name}.eval() first")
    totals = Totals()
    with torch.inference_mode():
        for batch in tracked(batches, "Comparing", progress):
            inputs = token_inputs(batch)
            reference_logits = run(reference, inputs).logits
            totals.add(run(model, inputs).logits, reference_logits, inputs["input_ids"], inputs.get("attention_mask"))
    return totals.comparison()


def perplexity(model: nn.Module, batches: Iterable[Any], *, progress: bool = False) -> tuple[float, int]:
    """Measures the perplexity of a causal language model alone.

    Args:
        model: As in `compare`.
        batches: As in `compare`.
        progress: Shows a progress bar.

    Returns:
        The perplexity, and the number of tokens that were predicted.

    Raises:
        TypeError: A batch is neither a tensor of tokens nor a mapping with `input_ids`.
        ValueError: There are no batches, one has no token to predict, or the model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout adds noise; call model.eval() first")
    totals = Totals()
    with torch.inference_mode():
        for batch in tracked(batches, "Measuring", progress):
            inputs = token_inputs(batch)
            logits = run(model, inputs).logits
            totals.add(logits, logits, inputs["input_ids"], inputs.get("attention_mask"))
    found = totals.comparison()
    return found.perplexity, found.tokens


def text_windows(
    tokenizer: Any, text: str | os.PathLike[str], window: int = 512, tokens: int | None = None
) -> list[Tensor]:
    """Cuts a text into windows of tokens that do not overlap.

    Args:
        tokenizer: A tokenizer of transformers.
        text: A text, or the path of a text file in UTF-8 as a `pathlib.Path`.
        window: Tokens of a window.
        tokens: Tokens of all windows together, the first ones of the text; all of them if None.

    Returns:
        Tensors int64 [1, window], which `compare` takes and `llmint8.calibrate` too; the last one may be shorter, but
        has two tokens at least.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `window` or `tokens` is less than 2, or the text is empty or shorter than asked for.
    """
    for name, value in (("window", window), ("tokens", tokens)):
        if value is not None and value < 2:
            raise ValueError(f"{name} must be at least 2 tokens, one to predict and one before it, got {value}")
    is_file = not isinstance(text, str)
    content = Path(text).read_text(encoding="utf-8") if is_file else str(text)
    ids = torch.tensor(tokenizer(content, verbose=False)["input_ids"], dtype=torch.int64)  # long on purpose: no warning
    if len(ids) < (tokens or 2):
        source = f"the file {text}" if is_file else "the text (for a file, give a pathlib.Path)"
        raise ValueError(f"{source} has {len(ids)} tokens, but {tokens or 2} are needed; give a longer one")
    return [part for part in ids[:tokens][None].split(window, dim=1) if part.shape[1] > 1]


def token_inputs(batch: Any) -> dict[str, Any]:
    """Returns a batch of tokens as the keywords of a language model.

    Args:
        batch: int64 [tokens] or [batch, tokens], or a mapping with such `input_ids`.

    Raises:
        TypeError: It is something else.
    """
    inputs = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() not in (1, 2):
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(batch).__name__
        raise TypeError(
            f"a batch must be a tensor of tokens [batch, tokens] or a mapping with one as input_ids, got {got}"
        )
    if tokens.dim() == 1:
        inputs = {name: value[None] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return inputs


def run(model: nn.Module, batch: Any) -> Any:
    """Calls a model with a batch, whose tensors are moved to the model's device.

    Args:
        model: Any module.
        batch: A mapping is passed as keywords, a tuple or list as arguments, anything else as the only argument.
    """
    device = next((p.device for p in model.parameters()), None)

    def moved(value: Any) -> Any:
        # An offloaded model has its weights on the meta device, and moves its inputs itself.
        return value.to(device) if isinstance(value, Tensor) and device is not None and device.type != "meta" else value

    if isinstance(batch, Mapping):
        return model(**{name: moved(value) for name, value in batch.items()})
    return model(*map(moved, batch)) if isinstance(batch, tuple | list) else model(moved(batch))


def tracked(items: Iterable[T], description: str, progress: bool) -> Iterable[T]:
    """Returns the items, with a progress bar that goes away at the end if asked for."""
    if not progress:
        return items
    from rich.progress import track

    return track(items, description, transient=True)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
