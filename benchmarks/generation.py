"""Speed of generation: prefill and decode of every system, interleaved in one run."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from models import random_llama_1b
from rich.console import Console
from systems import SYSTEMS
from table import append, show

from llmint8.default_model import default_model

MODELS = {"1.1b": (random_llama_1b, 256), "smollm2": (default_model, 512)}


def serve(system: str, checkpoint: str, threads: int) -> None:
    """Loads a system and answers requests, one JSON a line, until the input ends."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = SYSTEMS[system](Path(checkpoint))  # type: ignore[call-arg]
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        kind = request.pop("kind")
        print(json.dumps(getattr(model, kind)(**request)), flush=True)


class Worker:
    """A system in a process of its own."""

    def __init__(self, system: str, checkpoint: Path, threads: int) -> None:
        """Starts it and waits until it has loaded."""
        command = [sys.executable, __file__, "--worker", system, "--model", str(checkpoint), "--threads", str(threads)]
        # A pipe that nobody reads would stop who writes much.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._read()

    def ask(self, kind: str, **request: int) -> Any:
        """Returns the answer to a request."""
        assert self._process.stdin is not None
        print(json.dumps({"kind": kind, **request}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):  # what a library prints
                return json.loads(line)
        self._errors.seek(0)
        raise SystemExit(f"{self._process.args[3]} failed:\n{self._errors.read()[-2000:]}")  # type: ignore[index]

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def busy_core() -> subprocess.Popen:
    """Starts another process that keeps one core busy."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


@contextlib.contextmanager
def load(busy: bool) -> Iterator[None]:
    """Runs another busy process meanwhile, if asked."""
    process = busy_core() if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}, or the folder of a 16-bit checkpoint.")] = "1.1b",
    systems: Annotated[str, typer.Option(help="Which to run.")] = ",".join(SYSTEMS),
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt; by default what suits the model.")] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens to generate a round.")] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds; every system runs in each of them.")] = 5,
    batch: Annotated[int, typer.Option(help="Sequences of the batched decode; 0 for none.")] = 8,
    busy: Annotated[bool, typer.Option(help="Decode also beside a process that keeps one core busy.")] = False,
    threads: Annotated[int, typer.Option()] = torch.get_num_threads(),
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compares tokens per second."""
    if worker:
        serve(worker, model, threads)
        return
    make, default_prompt = MODELS.get(model, (lambda: Path(model), 256))
    checkpoint, prompt = make(), prompt or default_prompt
    names = systems.split(",")
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with Console(stderr=True).status("Loading") as status:
        workers = {}
        for name in names:
            status.update(f"Loading {name}")
            workers[name] = Worker(name, checkpoint, threads)
        for turn in range(rounds + 1):  # the first one warms up
            for name, system in workers.items():
                status.update(f"Round {turn} of {rounds}: {name}")
                figures = _measure(system, name, prompt, batch, tokens, busy)
                for figure, value in figures.items() if turn else ():
                    measured[name].setdefault(figure, []).append(value)
        for system in workers.values():
            system.stop()
    rows = [_row(name, measured) for name in names]
    show(f"{checkpoint.name}, prompt {prompt}, {threads} threads: tokens/s (of llmint8's)", rows)
    if output is not None:
        append(output, [{"model": checkpoint.name, "prompt": prompt, **row} for row in rows])


def _measure(system: Worker, name: str, prompt: int, batch: int, tokens: int, busy: bool) -> dict[str, float]:
    """Tokens per second of one round."""
    figures = {"prefill": prompt / system.ask("prefill", prompt=prompt, batch=1)}
    figures["decode"] = 1 / statistics.median(system.ask("decode", prompt=prompt, batch=1, tokens=tokens))
    if busy:
        with load(busy):
            # With stops of milliseconds here and there, only the sum says how long it takes.
            seconds = system.ask("decode", prompt=prompt, batch=1, tokens=tokens)
            figures["decode, busy"] = len(seconds) / sum(seconds)
    if batch and name != "llama.cpp":
        seconds = system.ask("decode", prompt=prompt, batch=batch, tokens=tokens // 2)
        figures[f"decode x {batch}"] = batch / statistics.median(seconds)
    return figures


def _row(name: str, measured: dict[str, dict[str, list[float]]]) -> dict[str, str]:
    ours = measured.get("llmint8", {})
    row = {"system": name}
    figures = list(dict.fromkeys(figure for values in measured.values() for figure in values))
    for figure in figures:
        values = measured[name].get(figure)
        if values is None:
            row[figure] = "-"
            continue
        row[figure] = f"{statistics.median(values):.1f}"
        if name != "llmint8" and figure in ours:
            ratios = [mine / other for mine, other in zip(ours[figure], values, strict=True)]
            row[figure] += f" ({statistics.median(ratios):.2f}x)"
    return row


if __name__ == "__main__":
    typer.run(main)
