"""`llmint8 eval` on the command line."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import Result

import llmint8
from llmint8.analysis import compare, perplexity, text_windows

Run = Callable[..., Result]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    return file


def test_is_what_python_gives(chat_checkpoint: Path, llmint8_command: Run, text: Path) -> None:
    options = ["--text", text, "--tokens", 200, "--window", 64]
    result = llmint8_command("eval", chat_checkpoint, *options, "--threshold", "0.5", "--absolute", "--json")
    assert result.exit_code == 0, result.output
    windows = text_windows(AutoTokenizer.from_pretrained(chat_checkpoint), text, window=64, tokens=200)
    model = llmint8.from_pretrained(chat_checkpoint, threshold=0.5, relative=False)
    expected = compare(model, llmint8.from_pretrained(chat_checkpoint, load_in_8bit=False), windows)
    assert json.loads(result.stdout) == vars(expected)
    assert expected.kl > 0
    assert result.stderr == ""


def test_an_int8_checkpoint_beside_a_reference_and_alone(
    chat_checkpoint: Path, int8_checkpoint: Path, llmint8_command: Run
) -> None:
    beside = llmint8_command("eval", int8_checkpoint, "--reference", chat_checkpoint, "--tokens", 100, "--json")
    direct = llmint8_command("eval", chat_checkpoint, "--tokens", 100, "--json")  # Python's own text
    assert beside.exit_code == direct.exit_code == 0, beside.output
    assert json.loads(beside.stdout) == json.loads(direct.stdout)
    assert json.loads(beside.stdout)["kl_standard_error"] is None  # of a single window
    alone = llmint8_command("eval", int8_checkpoint, "--reference", "none", "--tokens", 100, "--json")
    found = json.loads(alone.stdout)
    assert found == {"tokens": 99, "perplexity": json.loads(beside.stdout)["perplexity"]}


def test_prints_a_table(chat_checkpoint: Path, llmint8_command: Run, text: Path) -> None:
    result = llmint8_command("eval", chat_checkpoint, "--text", text, "--tokens", 128, "--window", 64)
    assert result.exit_code == 0, result.output
    for words in ("perplexity in 8 bit", "perplexity of the reference", "KL divergence", "same most likely token", "%"):
        assert words in result.stdout
    assert "\x1b" not in result.output


def test_perplexity_is_that_of_the_loss(chat_checkpoint: Path, text: Path) -> None:
    model = llmint8.from_pretrained(chat_checkpoint)
    (window,) = text_windows(AutoTokenizer.from_pretrained(chat_checkpoint), text, window=100, tokens=100)
    value, tokens = perplexity(model, [window])
    loss = model(window, labels=window).loss.item()
    assert tokens == 99
    assert math.isclose(value, math.exp(loss), rel_tol=1e-2)  # the loss is a mean of bf16 logits
    with pytest.raises(ValueError, match="training mode"):
        perplexity(model.train(), [window])


def test_a_mistake_is_one_line_and_status_2(
    chat_checkpoint: Path, int8_checkpoint: Path, refused: Callable[..., None], make_checkpoint: Callable[..., Path]
) -> None:
    refused("is int8 already: say what to compare it with", "eval", int8_checkpoint)
    refused("is int8; give the unquantized model", "eval", chat_checkpoint, "--reference", int8_checkpoint)
    refused("/nowhere does not exist", "eval", "/nowhere")
    refused("/nothing.txt", "eval", chat_checkpoint, "--text", "/nothing.txt")
    refused("not a text in UTF-8", "eval", chat_checkpoint, "--text", next(chat_checkpoint.glob("*.safetensors")))
    refused("window must be at least 2 tokens", "eval", chat_checkpoint, "--window", "1")
    refused("contradicts mode", "eval", chat_checkpoint, "--mode", "none", "--budget", "3")
    refused(
        "cannot be changed: the checkpoint is already int8",
        "eval",
        int8_checkpoint,
        "--reference",
        "none",
        "--skip",
        "q_proj",
    )
