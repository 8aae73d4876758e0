"""Rates are tokens over seconds, and models are measured in turn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmint8 import speed


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by the number of tokens that a model reads, and not otherwise."""
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    original = PreTrainedModel.__call__

    def call(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        tokens = args[0] if args else kwargs.get("input_ids")
        if self.can_generate() and tokens is not None:
            now[0] += tokens.shape[1]
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__call__", call, raising=False)


@pytest.mark.usefixtures("slow_clock")
def test_rates(make_model: Callable[..., PreTrainedModel]) -> None:
    model = make_model("llama")
    found = speed.measure({"a": model}, prompt=20, tokens=5, batch=3, rounds=2)["a"]
    # A call takes as many seconds as it has positions: 20 for a prompt of 3 sequences, then 1 for each of their tokens.
    assert found.prefill == 3
    assert found.decode == 3
    assert found.first_token == 20
    assert found.prefill_range == (3, 3)


def test_in_turn_and_with_different_prompts(make_model: Callable[..., PreTrainedModel]) -> None:
    models = {"a": make_model("llama"), "b": make_model("gpt2")}
    calls: list[tuple[str, tuple[int, ...]]] = []
    for name, model in models.items():
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls.append((name, tuple(args[0][0].tolist()))) if args else None,
            with_kwargs=True,
        )
    seen: list[int] = []
    speed.measure(models, prompt=8, tokens=2, rounds=2, progress=seen.append)
    assert [name for name, _ in calls] == ["a", "b"] * 3  # the first pair is the warm-up
    prompts = [prompt for _, prompt in calls]
    assert prompts[2] == prompts[3]  # the same for both
    assert len(set(prompts)) == 3  # another one in each round
    assert seen == [1, 2]


def test_tied_weights_count_once(make_model: Callable[..., PreTrainedModel]) -> None:
    tied, own = make_model("llama-tied"), make_model("llama")
    assert speed.weight_bytes(own) - speed.weight_bytes(tied) == own.lm_head.weight.nbytes
    assert speed.weight_bytes(torch.nn.Linear(3, 2)) == (6 + 2) * 4
