"""How tokens are chosen."""

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from llmint8.generation.sampling import Penalties, Sampler


def test_penalties_count_what_was_said_after_the_prompt() -> None:
    scores = Penalties(prompt=2, frequency=0.5, presence=1.0)(torch.tensor([[3, 3, 1, 2, 2]]), torch.zeros(1, 4))
    assert scores.tolist() == [[0.0, -1.5, -2.0, 0.0]]


@pytest.fixture
def model(make_model: object) -> PreTrainedModel:
    return make_model("llama")


def test_greedy_is_the_largest_and_a_seed_repeats_itself(model: PreTrainedModel) -> None:
    logits = torch.randn(160, generator=torch.Generator().manual_seed(0))
    greedy = Sampler(model, GenerationConfig(do_sample=False, max_new_tokens=1), prompt=1)
    assert greedy.choose([1], logits) == int(logits.argmax())

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(model, GenerationConfig(do_sample=True, max_new_tokens=1, top_k=0), prompt=1, seed=seed)
        return [sampler.choose([1], logits) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_top_p_leaves_out_what_is_unlikely(model: PreTrainedModel) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(model, GenerationConfig(do_sample=True, max_new_tokens=1, top_p=0.7), prompt=1, seed=0)
    assert {sampler.choose([1], logits) for _ in range(100)} == {0, 1}
