"""The default model, as a source of answers."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import llmint8
from llmint8.chat.local import Local
from llmint8.chat.source import Sampling, Statistics

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def local(smollm2: Path) -> Local:
    return Local("small", llmint8.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2))


def test_an_answer_and_what_is_known_of_it(local: Local) -> None:
    statistics = Statistics()
    text = "".join(local.stream(QUESTION, Sampling(temperature=0), statistics))
    assert "Paris" in text
    assert statistics.prompt_tokens == 37
    assert 5 < statistics.tokens < 40
    assert 0 < statistics.first < statistics.seconds
    assert not statistics.truncated
    assert (local.memory() or 0) > 1e8


def test_a_closed_answer_stops(local: Local) -> None:
    statistics = Statistics()
    stream = local.stream([{"role": "user", "content": "Count from 1 to 500."}], Sampling(temperature=0), statistics)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert statistics.tokens < 50


def test_limits_and_seeds(local: Local) -> None:
    statistics = Statistics()
    list(local.stream(QUESTION, Sampling(temperature=0, max_tokens=3), statistics))
    assert (statistics.tokens, statistics.truncated) == (3, True)
    poem = [{"role": "user", "content": "Write a line of a poem."}]
    texts = ["".join(local.stream(poem, Sampling(1.5, 1.0, 12, seed), Statistics())) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_top_p_samples(local: Local) -> None:
    poem = [{"role": "user", "content": "Write a line of a poem."}]
    texts = [
        "".join(local.stream(poem, Sampling(top_p=0.99, max_tokens=12, seed=seed), Statistics())) for seed in (1, 2)
    ]
    assert texts[0] != texts[1]


def test_messages_that_the_template_refuses(local: Local, smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(ValueError, match="does not take these messages: no system messages"):
        next(Local("picky", local._model, tokenizer).stream(QUESTION, Sampling(), Statistics()))


def test_a_conversation_that_is_too_long(local: Local) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(ValueError, match="the model reads 8192 at most; /clear"):
        list(local.stream(long, Sampling(), Statistics()))


def test_a_model_without_a_chat_template(local: Local, smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Local("base", local._model, tokenizer)
