"""How fast language models are, side by side: prompts, tokens one after another, and the size of their weights."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Speed:
    """Medians over the rounds; the fastest and slowest round beside them.

    Attributes:
        prefill: Tokens of prompts per second, of all sequences together.
        prefill_range: Slowest and fastest.
        decode: Tokens per second after the first one, of all sequences together.
        decode_range: Slowest and fastest.
        first_token: Seconds from the call of `generate` to the first token.
        weight_bytes: Bytes of parameters and buffers; a tied weight counts once.
    """

    prefill: float
    prefill_range: tuple[float, float]
    decode: float
    decode_range: tuple[float, float]
    first_token: float
    weight_bytes: int


def measure(
    models: Mapping[str, PreTrainedModel],
    prompt: int = 256,
    tokens: int = 32,
    batch: int = 1,
    rounds: int = 3,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Speed]:
    """Measures language models in turn, so that what else the machine does meets all of them.

    Args:
        models: Causal language models in evaluation mode, by name.
        prompt: Tokens of a prompt; they are random.
        tokens: Tokens to generate, at least 2, greedily; the end of a text does not end it.
        batch: Sequences at once.
        rounds: How often each is measured, after a run that does not count.
        progress: Called after each round with the number of rounds that are done.

    Returns:
        Speeds by name.

    Raises:
        ValueError: A number is too small, or a model was not made for so many tokens.
    """
    smallest = (("prompt", prompt, 1), ("tokens", tokens, 2), ("batch", batch, 1), ("rounds", rounds, 1))
    for name, value, least in smallest:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for model in models.values():
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if isinstance(longest, int) and prompt + tokens > longest:
            raise ValueError(f"{prompt} + {tokens} tokens are more than the {longest} that the model was made for")
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    for model in models.values():
        _run(model, prompt, _WARM_UP_TOKENS, batch, 0)
    for i in range(rounds):
        for name, model in models.items():
            times[name].append(_run(model, prompt, tokens, batch, i + 1))
        if progress:
            progress(i + 1)
    return {name: _speed(models[name], rows, prompt, tokens, batch) for name, rows in times.items()}


def weight_bytes(model: torch.nn.Module) -> int:
    """Returns the bytes of the parameters and buffers of a model.

    Args:
        model: Any module; what is tied counts once.
    """
    return sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))


def _run(model: PreTrainedModel, prompt: int, tokens: int, batch: int, seed: int) -> tuple[float, float, float]:
    """Seconds of a prompt, from a call of `generate` to the first token, and from there to the last."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, vocabulary, (batch, prompt), generator=generator).to(model.device)
    _wait(model)
    with torch.no_grad():
        start = time.perf_counter()
        model(inputs, use_cache=True, logits_to_keep=1)
        _wait(model)
        prefill = time.perf_counter() - start
    steps: list[float] = []

    def note_the_time(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        _wait(model)
        steps.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    start = time.perf_counter()
    model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=[note_the_time],
    )
    return prefill, steps[0] - start, steps[-1] - steps[0]


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _speed(
    model: PreTrainedModel, rows: list[tuple[float, float, float]], prompt: int, tokens: int, batch: int
) -> Speed:
    prefill = sorted(prompt * batch / row[0] for row in rows)
    decode = sorted((tokens - 1) * batch / row[2] for row in rows)
    return Speed(
        prefill=statistics.median(prefill),
        prefill_range=(prefill[0], prefill[-1]),
        decode=statistics.median(decode),
        decode_range=(decode[0], decode[-1]),
        first_token=statistics.median(row[1] for row in rows),
        weight_bytes=weight_bytes(model),
    )
