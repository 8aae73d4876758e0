"""What a user did wrong is one line and status 2; a fault of ours is a traceback and status 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmint8.cli import models
from llmint8.cli.errors import DEBUG_VARIABLE

Run = Callable[..., Result]


def of_package(package: str, body: str) -> Callable[..., None]:
    """Returns a function of that body which seems to stand in a package."""
    scope: dict[str, Any] = {"__name__": f"{package}.planted"}
    exec(f"def planted(*args, **kwargs):\n    {body}", scope)
    return scope["planted"]


@pytest.mark.parametrize(
    ("package", "body"),
    [
        ("llmint8", "return 1 + 'a'"),
        ("llmint8", "return int('a')"),
        ("llmint8", "return {}['a']"),
        ("llmint8", "return None.a"),
        ("llmint8", "raise KeyError('a')"),
        ("llmint8", "import torch; torch.ones(2) @ torch.ones(3)"),
        ("llmint8", "import llmint8.nothing"),
        ("somebody", "raise TypeError('a')"),
        ("somebody", "raise RuntimeError('a')"),
    ],
)
def test_a_fault_shows_a_traceback(
    package: str, body: str, chat_checkpoint: Path, llmint8_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", of_package(package, body))
    result = llmint8_command("bench", chat_checkpoint)
    assert result.exit_code == 1
    assert not isinstance(result.exception, SystemExit)  # so that Python shows it


@pytest.mark.parametrize(
    ("package", "body", "message"),
    [
        ("llmint8", "raise ValueError('use another')", "use another"),
        ("llmint8", "raise TypeError('use another')", "use another"),
        ("transformers", "raise ImportError('install it')", "install it"),
        ("huggingface_hub", "raise ValueError('no such name')", "no such name"),
        ("llmint8", "open('/nowhere/file')", "/nowhere/file"),
        ("somebody", "import json; json.loads('a')", "Expecting value"),
        ("somebody", "raise ConnectionError('nobody answers')", "nobody answers"),
        ("transformers_modules", "raise ValueError('only for float')", "only for float"),
        ("somebody", "raise MemoryError('too large')", "too large"),
        ("somebody", "import torch; torch.empty(1 << 60, dtype=torch.int8)", "allocate"),
        ("somebody", "import torch; raise torch.OutOfMemoryError('too large')", "too large"),
    ],
)
def test_what_is_meant_for_the_user_is_one_line(
    package: str,
    body: str,
    message: str,
    chat_checkpoint: Path,
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load", of_package(package, body))
    refused(message, "bench", chat_checkpoint)


def test_where_an_error_for_the_user_comes_from(llmint8_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    result = llmint8_command("bench", "/nowhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == "llmint8: /nowhere does not exist"
    assert DEBUG_VARIABLE in llmint8_command("--help").output
