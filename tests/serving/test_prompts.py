"""Tokenizing, bounded by the queue."""

import asyncio
import threading
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from llmint8.generation.engine import Engine
from llmint8.serving.errors import APIError
from llmint8.serving.prompts import Prompts, most_characters


def test_no_more_are_tokenized_than_have_a_place_and_two_at_a_time(manager: Any) -> None:
    engine = Engine(manager.model, manager.tokenizer, slots=1, max_queue=3)
    go, lock, now, most = threading.Event(), threading.Lock(), 0, 0

    def tokenize() -> list[int]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        assert go.wait(30)
        with lock:
            now -= 1
        return [1]

    async def ask() -> None:
        prompts = Prompts(engine)
        tasks = [asyncio.create_task(prompts.read(tokenize)) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(APIError, match="3 requests wait already") as caught:
            await prompts.read(tokenize)
        assert caught.value.status == 429
        go.set()
        assert await asyncio.gather(*tasks) == [[1]] * 4
        assert await prompts.read(tokenize) == [1]
        engine.close()
        with pytest.raises(APIError, match="stopping") as caught:
            await prompts.read(tokenize)
        assert caught.value.status == 503

    asyncio.run(ask())
    assert most == 2


def test_the_most_characters_of_a_token(manager: Any) -> None:
    assert most_characters(manager.tokenizer) == max(map(len, manager.tokenizer.get_vocab()))


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 6),
        ({"normalizer": tokenizers.normalizers.Replace(" ", "_")}, 6),
        ({"normalizer": tokenizers.normalizers.Replace(" ", "")}, None),
        ({"normalizer": tokenizers.normalizers.Strip()}, None),
        ({"pre_tokenizer": tokenizers.pre_tokenizers.Whitespace()}, None),
        ({"pre_tokenizer": tokenizers.pre_tokenizers.Metaspace()}, 6),
        ({"model": tokenizers.models.WordLevel({"a": 0}, unk_token="a")}, None),
        ({"model": tokenizers.models.BPE({"a": 0}, [], unk_token="a", fuse_unk=True)}, None),
    ],
)
def test_tokenizers_that_leave_something_out_have_no_such_limit(changes: dict[str, Any], most: int | None) -> None:
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<0x41>": 1}, [], byte_fallback=True))
    for name, part in changes.items():
        setattr(plain, name, part)
    assert most_characters(PreTrainedTokenizerFast(tokenizer_object=plain)) == most
