"""`llmint8 serve` under load: many clients at the same time beside one after another.

Every client asks for something of its own, greedily, so that its answer must be, letter by letter, the one that it got
alone; one that differs was mixed up.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from harness import options
from harness.results import Run, show

PATH = "/v1/chat/completions"
_WINDOW = 10  # seconds at the beginning and at the end whose memory is compared


@dataclass
class Load:
    """What came of a load.

    Attributes:
        answers: The texts of each client.
        tokens: Generated.
        seconds: That it took.
        lost: Why requests have no complete answer.
        first: Seconds to the first text of each request.
        memory: Time and resident bytes of the server.
    """

    answers: dict[int, list[str]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def requests(self) -> int:
        """That were answered."""
        return sum(map(len, self.answers.values()))


def question(client: int) -> str:
    """Returns what a client asks."""
    kind = ("lighthouse", "bakery", "library", "orchard", "harbour", "museum", "railway", "island")[client % 8]
    return f"Tell me a short story about a {kind} with the number {client}."


@contextmanager
def server(model: str | None, arguments: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Runs `llmint8 serve` on a free port.

    Yields:
        Its address, and its process.
    """
    command = [sys.executable, "-m", "llmint8", "serve", *([model] if model else []), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise typer.BadParameter(f"the server did not start: {' '.join(command)}")
        yield line.split()[-1].removesuffix("/v1"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def ask(address: str, number: int, tokens: int, load: Load) -> None:
    """Asks once, streamed, and keeps the answer.

    The client shares the processor with the server, so it is as little as does it: a socket whose lines are read.
    """
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question(number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    host = address.removeprefix("http://")
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    start, first, events = time.perf_counter(), 0.0, []
    try:
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status = (await reader.readline()).split()[1].decode()
        while line := await reader.readline():
            if line.startswith(b"data: "):
                events.append(line[6:])
                if len(events) == 2:  # the first says whose turn it is
                    first = time.perf_counter() - start
        writer.close()
    except (OSError, IndexError) as error:
        load.lost.append(type(error).__name__)
        return
    if status != "200" or not events or events[-1].strip() != b"[DONE]":
        load.lost.append(status if status != "200" else "cut off")
        return
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    load.answers.setdefault(number, []).append(text)
    load.tokens += chunks[-1]["usage"]["completion_tokens"]
    load.first.append(first)


async def one_after_another(address: str, clients: int, tokens: int) -> Load:
    """Has every client ask once, each after the one before."""
    load = Load()
    await ask(address, 0, tokens, Load())  # not measured
    start = time.perf_counter()
    for number in range(clients):
        await ask(address, number, tokens, load)
    load.seconds = time.perf_counter() - start
    return load


async def together(address: str, process: psutil.Process, clients: int, tokens: int, seconds: float) -> Load:
    """Has all clients ask again and again, at the same time."""
    load = Load()
    start = time.perf_counter()

    async def asks(number: int) -> None:
        while time.perf_counter() - start < seconds:
            await ask(address, number, tokens, load)

    async def watch() -> None:
        while True:
            load.memory.append((time.perf_counter() - start, process.memory_info().rss))
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*map(asks, range(clients)))
    load.seconds = time.perf_counter() - start
    watcher.cancel()
    return load


def growth(memory: list[tuple[float, int]], warm_up: float, end: float) -> float:
    """Returns by how much the last seconds have more resident memory than the first after the warm-up, as a share."""
    before = [size for at, size in memory if warm_up <= at < warm_up + _WINDOW]
    after = [size for at, size in memory if end - _WINDOW <= at < end]
    return statistics.mean(after) / statistics.mean(before) - 1 if before and after else float("nan")


def main(
    model: Annotated[str | None, typer.Option(help="A folder or a name; the default model if none.")] = None,
    clients: Annotated[int, typer.Option(help="At the same time.")] = 64,
    seconds: Annotated[float, typer.Option(help="Of asking at the same time.")] = 120,
    warm_up: Annotated[float, typer.Option(help="Seconds before memory is looked at.")] = 20,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 128,
    arguments: Annotated[str, typer.Option(help="More of `llmint8 serve`, separated by spaces.")] = "",
    output: options.Output = None,
) -> None:
    """Measures throughput, first tokens and memory, and counts what was lost or mixed up."""
    more = [*arguments.split(), "--max-queue", str(clients)]
    with server(model, more) as (address, process):
        with urllib.request.urlopen(f"{address}/info") as response:
            name = json.load(response)["model"]
        alone = asyncio.run(one_after_another(address, clients, tokens))
        crowd = asyncio.run(together(address, process, clients, tokens, seconds))
    expected = {number: texts[0] for number, texts in alone.answers.items()}
    mixed_up = sum(text != expected.get(n) for n, texts in crowd.answers.items() for text in texts)
    run = Run("serving")
    setting = f"clients={clients} tokens={tokens}"
    figures = [
        ("one at a time", alone.rate, "tokens/s"),
        ("together", crowd.rate, "tokens/s"),
        ("ratio", crowd.rate / alone.rate, "x"),
        ("first token alone, median", statistics.median(alone.first), "s"),
        ("first token together, median", statistics.median(crowd.first), "s"),
        ("requests together", crowd.requests, ""),
        ("different answers", len(set(expected.values())), ""),
        ("lost", len(alone.lost) + len(crowd.lost), ""),
        ("mixed up", mixed_up, ""),
        ("resident memory, most", max(size for _, size in crowd.memory), "B"),
        ("growth of memory", growth(crowd.memory, warm_up, seconds), "share"),
    ]
    for figure, value, unit in figures:
        run.add("llmint8 serve", figure, value, unit, model=Path(name).name, setting=setting)
    run.save(output)
    show(f"{name}, {setting}", [{"figure": f, "value": f"{v:.4g}", "unit": u} for f, v, u in figures])
    if crowd.lost:
        print("lost:", ", ".join(sorted(set(crowd.lost))), file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
