"""`llmint8 inspect` on the command line."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import Result

import llmint8
from llmint8.analysis import outlier_report, text_windows

Run = Callable[..., Result]


def test_json_is_what_python_gives(chat_checkpoint: Path, llmint8_command: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten " * 20, encoding="utf-8")
    options = ["--text", text, "--tokens", 128, "--window", 64, "--threshold", 2.5, "--relative"]
    result = llmint8_command("inspect", chat_checkpoint, *options, "--json")
    assert result.exit_code == 0, result.output
    windows = text_windows(AutoTokenizer.from_pretrained(chat_checkpoint), text, window=64, tokens=128)
    reference = llmint8.from_pretrained(chat_checkpoint, load_in_8bit=False)
    expected = outlier_report(reference, windows, 2.5, relative=True)
    assert json.loads(result.stdout) == json.loads(json.dumps(expected.to_dict()))
    assert expected.inputs
    assert expected.inputs[0].columns


def test_tables_and_a_plot_of_an_int8_checkpoint(int8_checkpoint: Path, llmint8_command: Run, tmp_path: Path) -> None:
    plot = tmp_path / "outliers.svg"
    result = llmint8_command("inspect", int8_checkpoint, "--tokens", 64, "--plot", plot)
    assert result.exit_code == 0, result.output
    for words in ("Outlier features", "self_attn.q_proj/k_proj/v_proj", "mlp.down_proj", f"wrote {plot}"):
        assert words in result.stdout.replace("\n", " ").replace("  ", " ") or words in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 100
    assert plot.read_text(encoding="utf-8").startswith("<?xml")


def test_a_mistake_is_found_before_the_model_is_run(
    chat_checkpoint: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("a plot is written as .png or .svg", "inspect", chat_checkpoint, "--plot", "a.gif")
    refused("the folder /nowhere does not exist", "inspect", chat_checkpoint, "--plot", "/nowhere/a.png")
    refused("threshold must be finite and greater than 0", "inspect", chat_checkpoint, "--threshold", "0")
    refused("/nothing.txt", "inspect", chat_checkpoint, "--text", "/nothing.txt")
    refused("/nowhere does not exist", "inspect", "/nowhere")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    refused("--plot needs matplotlib: pip install llmint8[analysis]", "inspect", chat_checkpoint, "--plot", "a.png")
