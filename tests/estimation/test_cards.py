"""Which GPU fits, and how long a context."""

from pathlib import Path

import pytest
import torch
import transformers

import llmint8
from llmint8.estimation.cards import CARDS, RESERVED, Card
from llmint8.estimation.longest import contexts_to_try, longest_context


def test_cards_are_in_order_and_have_what_is_sold_but_a_little() -> None:
    assert [card.gigabytes for card in CARDS] == sorted(card.gigabytes for card in CARDS)
    for card in CARDS:
        assert 0.93 < card.memory / (card.gigabytes << 30) <= 1
        assert card.usable == card.memory - RESERVED


def test_the_longest_context_lies_between_those_that_were_tried() -> None:
    contexts, totals = [1, 1000, 4000], [100, 1100, 7100]
    assert longest_context(99, contexts, totals) == 0
    assert longest_context(100, contexts, totals) == 1
    assert longest_context(1100, contexts, totals) == 1000
    assert longest_context(1100 + 2 * 600, contexts, totals) == 1600
    assert longest_context(9000, contexts, totals) == 4000


def test_contexts_to_try_have_both_ends_and_what_is_asked_for() -> None:
    assert contexts_to_try(4096, 100, None, 9999) == [1, 64, 100, 256, 1024, 4096]
    assert contexts_to_try(1) == [1]


@pytest.fixture
def config_of_7b(tmp_path: Path) -> Path:
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        max_position_embeddings=32768,
        dtype=torch.bfloat16,
    )
    config.save_pretrained(tmp_path)
    return tmp_path / "config.json"


@pytest.mark.slow
def test_a_longest_context_fits_and_a_longer_one_does_not(config_of_7b: Path) -> None:
    estimate = llmint8.estimate(config_of_7b)
    checked = 0
    for fit in estimate.cards:
        if fit.int8_context and fit.int8_context < 32768:
            assert llmint8.estimate(config_of_7b, context=fit.int8_context).int8.total <= fit.card.usable
            longer = llmint8.estimate(config_of_7b, context=int(fit.int8_context * 1.1) + 128)
            assert longer.int8.total > fit.card.usable
            checked += 1
    assert checked >= 2
    assert [fit.int8 for fit in estimate.cards[:3]] == [False, True, True]  # 6.7 GB of weights and 2 GB of cache
    assert [fit.unquantized for fit in estimate.cards[2:4]] == [False, True]


def test_a_model_that_cannot_be_loaded_does_not_fit(config_of_7b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    footprint = llmint8.estimate(config_of_7b, context=16).int8
    assert footprint.total < footprint.loading  # a short context takes less than the largest weight
    memory = (footprint.total + footprint.loading) // 2 + RESERVED
    card = Card("a card between them", 8, memory, 89)
    monkeypatch.setattr("llmint8.estimation.compute.CARDS", (card,))
    (fit,) = llmint8.estimate(config_of_7b, context=16).cards
    assert not fit.int8
    assert fit.int8_context == 0
