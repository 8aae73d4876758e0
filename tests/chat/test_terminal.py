"""The terminal with a source that says what the test wants."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmint8.chat.conversation import Conversation
from llmint8.chat.source import Message, Sampling, Statistics
from llmint8.chat.terminal import Terminal


class Echo:
    """Repeats the last question word by word, and remembers what it was asked."""

    name, context = "echo", 100

    def __init__(self, fails: type[BaseException] | None = None) -> None:
        self.asked: list[list[Message]] = []
        self.sampling: list[Sampling] = []
        self.closed = 0
        self.fails = fails

    def stream(self, messages: Sequence[Message], sampling: Sampling, statistics: Statistics) -> Iterator[str]:
        self.asked.append(list(messages))
        self.sampling.append(sampling)
        try:
            for word in messages[-1]["content"].split():
                statistics.tokens += 1
                yield word + " "
                if self.fails is not None:
                    raise self.fails("it broke")
        finally:
            self.closed += 1

    def memory(self) -> int:
        return 5_000_000


def run(source: Echo, text: str, monkeypatch: pytest.MonkeyPatch, system: str = "") -> bool:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return Terminal(source, Conversation(system), Sampling()).run()


def test_in_a_pipe_only_answers_go_to_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source = Echo()
    assert run(source, "one two\n\nthree\n/exit\nnever\n", monkeypatch, system="be brief")
    assert capsys.readouterr().out == "one two \nthree \n"
    assert source.asked[1] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "three"},
    ]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    source, path = Echo(), tmp_path / "chat.json"
    text = f"one\n/set temperature 0\n/system be kind\n/set\ntwo\n/save {path}\n/help\n"
    assert run(source, text, monkeypatch)
    assert source.asked[1] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "two"}]
    assert [sampling.temperature for sampling in source.sampling] == [None, 0]
    assert json.loads(path.read_text())[-1] == {"role": "assistant", "content": "two "}
    assert "temperature 0.0, top_p none" in capsys.readouterr().err
    assert not run(source, f"three\n/save {path}\n", monkeypatch)  # it is there already
    assert len(json.loads(path.read_text())) == 3
    assert not run(source, "/sing\n", monkeypatch)
    assert "there is no command /sing" in capsys.readouterr().err


def test_a_failed_question_is_taken_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source = Echo(fails=ValueError)
    assert not run(source, "one two\nthree\n", monkeypatch)
    assert [len(messages) for messages in source.asked] == [1, 1]
    assert "error: it broke" in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_and_keeps_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Echo(fails=KeyboardInterrupt)
    monkeypatch.setattr("sys.stdin", io.StringIO("one two\nthree\n"))
    terminal = Terminal(source, Conversation(), Sampling())
    terminal.is_interactive = True
    monkeypatch.setattr("builtins.input", lambda _: sys.stdin.readline() or "/exit")
    assert terminal.run()
    assert source.asked[1][1] == {"role": "assistant", "content": "one "}
    assert source.closed == 2


def test_ctrl_c_just_after_an_answer_does_not_end_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Slow(Echo):
        def memory(self) -> int:
            raise KeyboardInterrupt

    source, lines = Slow(), iter(["one", "two", "/exit"])
    terminal = Terminal(source, Conversation(), Sampling())
    terminal.is_interactive = True
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert terminal.run()
    assert [message["content"] for message in source.asked[1]] == ["one", "one ", "two"]
    assert "/exit or Ctrl-D leaves" in capsys.readouterr().err


def test_ctrl_c_in_a_pipe_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Echo(fails=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, "one two\nthree\n", monkeypatch)
    assert (len(source.asked), source.closed) == (1, 1)


def test_nobody_reads_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Echo(fails=BrokenPipeError)
    with pytest.raises(BrokenPipeError):
        run(source, "one two\nthree\n", monkeypatch)
    assert (len(source.asked), source.closed) == (1, 1)
