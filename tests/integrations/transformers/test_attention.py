"""Attention of int8 models on a CPU is ours where it can be, and transformers' where it cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import llmint8
from llmint8 import ops
from llmint8.integrations.transformers import attention
from llmint8.integrations.transformers.fused import unfuse
from llmint8.nn import FloatLinear

TOKENS = torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries that our kernel gets."""
    shapes: list[tuple[int, ...]] = []
    kernel = ops.attention

    def spy(query: torch.Tensor, *args: object) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        return kernel(query, *args)

    monkeypatch.setattr(ops, "attention", spy)
    return shapes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bert"])
def test_logits_are_those_of_transformers(
    architecture: str,
    make_checkpoint: Callable[..., Path],
    run_model: Callable[[PreTrainedModel], torch.Tensor],
    calls: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = llmint8.from_pretrained(make_checkpoint(architecture), mode="none", budget=None)
    logits = run_model(model)
    assert len(calls) == 2
    monkeypatch.setattr(attention, "has_int8_projection", lambda module: False)
    torch.testing.assert_close(run_model(model), logits, rtol=0, atol=0.05)
    assert len(calls) == 2


def test_generation_is_that_of_transformers(
    make_checkpoint: Callable[..., Path], calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llmint8.from_pretrained(make_checkpoint())
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    unfuse(model)
    ours = model.generate(TOKENS, **options)
    assert {shape[2] for shape in calls} == {20, 1}
    monkeypatch.setattr(attention, "has_int8_projection", lambda module: False)
    assert torch.equal(model.generate(TOKENS, **options), ours)


def test_masks_gradients_and_other_models_are_left_to_transformers(
    make_checkpoint: Callable[..., Path], make_model: Callable[..., PreTrainedModel], calls: list[tuple[int, ...]]
) -> None:
    model = llmint8.from_pretrained(make_checkpoint())
    padded = torch.ones_like(TOKENS)
    padded[0, :5] = 0
    with torch.no_grad():
        model(TOKENS, attention_mask=padded)
        make_model()(TOKENS)
    embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None
    assert not calls


def test_the_head_is_streamed_and_saved_as_ever(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = llmint8.from_pretrained(make_checkpoint())
    assert type(model.lm_head) is FloatLinear
    with torch.no_grad():
        state = torch.randn(1, 1, 64)
        expected = torch.nn.functional.linear(state, model.lm_head.weight)
        torch.testing.assert_close(model.lm_head(state), expected)
    assert model.lm_head(state.requires_grad_()).requires_grad
    model.save_pretrained(tmp_path / "saved")
    assert type(llmint8.from_pretrained(tmp_path / "saved").lm_head) is FloatLinear
    assert type(llmint8.dequantize_(model).lm_head) is torch.nn.Linear
