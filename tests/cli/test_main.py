"""The command itself: its help, its version, and how it finds its subcommands."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import llmint8
from llmint8.cli import commands

Run = Callable[..., Result]


def test_help_is_there_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llmint8.cli.main import make_app; make_app();"
        "print([m for m in ('torch', 'transformers', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run([sys.executable, "-m", "llmint8", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "estimate" in run.stdout
    assert statistics.median(seconds) < 0.6  # 0.15 s on an idle machine


def test_prints_the_version(llmint8_command: Run) -> None:
    assert llmint8_command("--version").output == f"llmint8 {llmint8.__version__}\n"


def test_every_file_of_commands_is_a_subcommand(llmint8_command: Run) -> None:
    files = {file.stem for file in Path(commands.__path__[0]).glob("*.py")} - {"__init__"}
    assert {"chat", "serve", "quantize", "estimate", "inspect", "eval", "bench", "doctor"} <= files
    listed = llmint8_command("--help").output.partition("Commands:")[2]
    for name in files:
        assert f"\n  {name} " in listed


def test_a_new_subcommand_is_one_file(
    llmint8_command: Run, refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.py").write_text(
        "import typer\n"
        "def command(word: str, times: int = 1) -> None:\n"
        "    '''Say a word.'''\n"
        "    if times < 1:\n"
        "        raise ValueError(f'times must be at least 1, got {times}')\n"
        "    typer.echo(' '.join([word] * times))\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llmint8.cli.commands.toy", raising=False)
    assert "Say a word." in llmint8_command("--help").output
    assert llmint8_command("toy", "hello", "--times", 2).output == "hello hello\n"
    refused("times must be at least 1, got 0", "toy", "hello", "--times", 0)
