"""`llmint8 bench` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import Result

import llmint8

Run = Callable[..., Result]
SMALL = ["--prompt", 16, "--tokens", 4, "--rounds", 2]


def test_both_precisions_beside_each_other(chat_checkpoint: Path, llmint8_command: Run) -> None:
    result = llmint8_command("bench", chat_checkpoint, *SMALL, "--batch", 2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {name: found[name] for name in ("prompt", "tokens", "batch", "rounds", "device", "threads")} == {
        **{"prompt": 16, "tokens": 4, "batch": 2, "rounds": 2},
        **{"device": "cpu", "threads": torch.get_num_threads()},
    }
    assert list(found["models"]) == ["8 bit", "bfloat16"]
    for name, load_in_8bit in (("8 bit", True), ("bfloat16", False)):
        model = llmint8.from_pretrained(chat_checkpoint, load_in_8bit=load_in_8bit)
        tensors = [*model.parameters(), *model.buffers()]
        assert found["models"][name]["weight_bytes"] == sum(tensor.nbytes for tensor in tensors)
        low, high = found["models"][name]["decode_range"]
        assert 0 < low <= found["models"][name]["decode"] <= high


def test_prints_a_table(chat_checkpoint: Path, int8_checkpoint: Path, llmint8_command: Run) -> None:
    both = llmint8_command("bench", chat_checkpoint, *SMALL)
    assert both.exit_code == 0, both.output
    for words in ("Prompt of 16 tokens, then 4, batch 1; cpu", "8 bit", "bfloat16", "ratio", "first token, ms"):
        assert words in both.stdout
    alone = llmint8_command("bench", int8_checkpoint, *SMALL)
    assert alone.exit_code == 0, alone.output
    assert "8 bit" in alone.stdout
    assert "ratio" not in alone.stdout.split()
    assert "\x1b" not in both.output + alone.output


def test_a_mistake_is_one_line_and_status_2(
    chat_checkpoint: Path, refused: Callable[..., None], make_checkpoint: Callable[..., Path]
) -> None:
    refused("prompt must be at least 1, got 0", "bench", chat_checkpoint, "--prompt", "0")
    refused("tokens must be at least 2, got 1", "bench", chat_checkpoint, "--tokens", "1")
    refused("512 + 32 tokens are more than the 512", "bench", chat_checkpoint, "--prompt", "512")
    refused("which does not predict the next token", "bench", make_checkpoint("bert"))
    refused("/nowhere does not exist", "bench", "/nowhere")
