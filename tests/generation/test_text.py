"""Text as it is decoded, and stop sequences in it."""

from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmint8.generation.text import TextStream

TEXT = "Größe: 1 ≤ 2, 🙂🙃 and so on. END of it"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, stop: list[str]) -> tuple[list[str], bool]:
    stream, found = TextStream(tokenizer, stop), []
    for token in tokenizer(text)["input_ids"]:
        found.append(stream.add(token))
        if stream.stopped:
            break
    return [*found, stream.finish()], stream.stopped


def test_pieces_are_the_text_without_halves_of_characters(tokenizer: PreTrainedTokenizerBase) -> None:
    found, stopped = pieces(tokenizer, TEXT, [])
    assert "".join(found) == TEXT
    assert "\ufffd" not in "".join(found)
    assert not stopped


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["END"], TEXT.split("END")[0]),
        ([" and so", "≤"], TEXT.split("≤")[0]),
        (["🙃"], TEXT.split("🙃")[0]),
        (["so on. END of"], TEXT.split("so on. END of")[0]),
    ],
)
def test_ends_before_the_first_stop_sequence(
    tokenizer: PreTrainedTokenizerBase, stop: list[str], expected: str
) -> None:
    found, stopped = pieces(tokenizer, TEXT, stop)
    assert "".join(found) == expected
    assert stopped


def test_what_only_begins_like_a_stop_sequence_comes_in_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    found, stopped = pieces(tokenizer, TEXT, ["so on. END of time", "of it!"])
    assert "".join(found) == TEXT
    assert not stopped


def test_an_answer_that_goes_on_with_a_text_keeps_its_first_space() -> None:
    words = ["\u2581The", "\u2581cat", "\u2581sat", "<s>", "\ufffd"]  # as SentencePiece writes spaces
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}))
    plain.decoder = tokenizers.decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")

    def said(before: list[int]) -> str:
        stream = TextStream(tokenizer, before=before)
        return "".join([stream.add(1), stream.add(2), stream.finish()])

    assert said([3, 0]) == " cat sat"
    assert said([3, 0] * 10) == " cat sat"
    assert said([]) == said([3]) == "cat sat"
    assert said([0, 4]) == "cat sat"  # what ends like half a character is not repeated
