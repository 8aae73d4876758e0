"""`llmint8 serve` on the command line."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

import llmint8
from llmint8.cli.main import make_app
from llmint8.serving import Int8ModelManager

COMMAND = [sys.executable, "-m", "llmint8", "serve", "--port", "0"]


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `llmint8 serve`; gives the process and the address that it prints."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("llmint8: SmolLM2-135M-Instruct is served at http://127.0.0.1:")
            yield process, line.split()[-1]
        finally:
            process.kill()


def errors_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def endless(tokens: int) -> dict[str, Any]:
    """A request whose answer has that many tokens."""
    return {
        "prompt": "Once upon a time",
        "max_tokens": tokens,
        "stream": True,
        "logit_bias": {"2": -100, "0": -100},
    }


@pytest.mark.slow
def test_serves_the_default_model_and_lets_answers_end_on_sigterm() -> None:
    with (
        serving("--api-key", "k") as (process, address),
        httpx.Client(base_url=address, headers={"Authorization": "Bearer k"}, timeout=60) as client,
    ):
        with client.stream("POST", "/completions", json=endless(40)) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/models")
        errors = errors_of(process)
    assert errors.count("\n") == 1, errors
    assert '"completion_tokens": 40' in errors


@pytest.mark.slow
def test_neither_an_open_page_nor_a_long_answer_keeps_it_from_stopping() -> None:
    pytest.importorskip("gradio")
    with serving("--ui", "--shutdown-seconds", "1") as (process, address):
        page = address.removesuffix("/v1") + "/ui/gradio_api/heartbeat/of-a-browser"
        with (
            httpx.Client(timeout=60) as client,
            client.stream("GET", page) as events,
            client.stream("POST", f"{address}/completions", json=endless(1000)) as response,
        ):
            assert events.status_code == 200
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
            assert '"code": "stopping"' in rest[-1]
            for _ in events.iter_bytes():  # until it ends
                pass
        assert process.wait(30) == 0
        errors = errors_of(process)
    assert errors.count("\n") == 1, errors
    assert '"finish_reason": "cancelled"' in errors


def test_a_checkpoint_that_is_int8_already_is_served_as_it_is(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "int8"
    llmint8.from_pretrained(smollm2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    saved, quantized = (Int8ModelManager(str(path)) for path in (folder, smollm2))
    assert saved.name == "int8"
    assert saved.weights() == quantized.weights()
    assert saved.weights()[0] < 0.65 * saved.weights()[1]
    layers = (manager.model.model.layers[3].mlp.up_proj for manager in (saved, quantized))
    assert torch.equal(*(layer.weight for layer in layers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere does not exist"),
        (["--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--max-queue", "-1"], "max_queue must be at least 0, got -1"),
        (["--slots", "0"], "slots must be at least 1, got 0"),
        (["--no-continuous-batching", "--slots", "4"], "--slots 4 contradicts"),
        (["--api-key", " "], "API key must be"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
        (["--dtype", "int4"], "int4"),
        (["--threshold", "-1"], "threshold"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(make_app(), ["serve", "--port", "0", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("llmint8: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_an_error_of_the_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmint8 import serving
    from llmint8.serving import server

    def run(*_: object) -> None:
        raise OSError("the address went away")

    monkeypatch.setattr(serving, "Int8ModelManager", lambda *_, **__: None)
    monkeypatch.setattr(serving, "create_app", lambda *_: None)
    monkeypatch.setattr(server, "run", run)
    result = CliRunner().invoke(make_app(), ["serve", "--port", "0"])
    assert (result.exit_code, result.stderr) == (2, "llmint8: the address went away\n")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    for name in [name for name in sys.modules if name.startswith("llmint8.serving")]:
        monkeypatch.delitem(sys.modules, name)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else found(name, *a))
    result = CliRunner().invoke(make_app(), ["serve"])
    assert result.exit_code == 2
    assert result.stderr == "llmint8: serving needs uvicorn: pip install llmint8[serve]\n"


@pytest.mark.parametrize("device", ["nothing", "cuda:99", "99", "meta", "privateuseone"])
def test_a_device_that_is_not_there(device: str, refused: Callable[..., None], chat_checkpoint: Path) -> None:
    refused(f"there is no device '{device}' here", "serve", chat_checkpoint, "--port", "0", "--device", device)
