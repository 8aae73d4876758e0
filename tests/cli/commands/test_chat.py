"""`llmint8 chat` on a terminal of its own, typed at."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest


class Typist:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "llmint8", "chat", *arguments]
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
            preexec_fn=self._as_on_a_terminal,
        )
        os.close(slave)
        self.terminal, self.seen = master, ""

    @staticmethod
    def _as_on_a_terminal() -> None:
        """Makes the standard input what Ctrl-C comes from; whoever starts the tests in the background ignores it."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def press_ctrl_c(self) -> None:
        self.type("\x03")

    def read(self) -> bool:
        """Adds what there is to read; False if the program has ended."""
        try:
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        except OSError:
            return False
        return True

    def wait_for_more(self) -> None:
        """Reads until there is a word."""
        end = time.monotonic() + 60
        while not self.seen.strip():
            assert time.monotonic() < end, "nothing came"
            assert self.read(), "the program ended"

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Reads until there is a text, and returns what came up to its end."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come, but {self.seen!r}"
            assert self.read(), f"{text!r} did not come, but the program ended: {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before + text


@pytest.fixture
def typist() -> Iterator[Typist]:
    made = Typist("--temperature", "0")
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.terminal)


@pytest.mark.slow
def test_a_conversation(typist: Typist) -> None:
    typist.wait_for("Ctrl-C stops an answer.")
    typist.wait_for("> ")
    typist.type("What is the capital of France?\n")
    typist.wait_for("Paris")
    status = typist.wait_for("GB]")
    assert "tokens/s" in status
    assert "context" in status
    typist.wait_for("> ")
    typist.type("Tell me a very long story about a horse.\n")
    typist.wait_for("horse.")  # the echo of the question; what has not been read yet, a Ctrl-C would drop
    typist.wait_for_more()
    typist.press_ctrl_c()
    typist.wait_for("GB · stopped]")
    typist.wait_for("> ")
    time.sleep(1)  # readline shows its prompt before it waits, and between the two, it learns of a Ctrl-C late
    typist.press_ctrl_c()
    typist.wait_for("/exit or Ctrl-D leaves")
    typist.type("What is the capital of Italy?\n")
    typist.wait_for("Rome")
    typist.wait_for("> ")
    typist.type("/exit\n")
    assert typist.process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere"),
        (["--temperature", "-1"], "temperature must be 0 to 100, got -1"),
        (["http://127.0.0.1:9"], "does not answer"),
        (["http://127.0.0.1:9", "--16bit"], "for a model that is loaded here"),
        (["--model", "x"], "--model is for the address of a server"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "llmint8", "chat", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""


@pytest.mark.slow
def test_questions_that_are_no_text() -> None:
    command = [sys.executable, "-m", "llmint8", "chat", "--temperature", "0"]
    environment = {**os.environ, "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}
    run = subprocess.run(command, input=b"caf\xe9\nhi\n", capture_output=True, env=environment)
    assert run.returncode == 1
    assert b"Traceback" not in run.stderr
    assert b"error: " in run.stderr
