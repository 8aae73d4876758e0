"""The terminal side of a chat: reads questions and commands, shows answers as they come."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llmint8.chat.conversation import Conversation
from llmint8.chat.source import Sampling, Source, Statistics

HELP = """\
/help              this
/system [TEXT]     what the model is told beforehand; a new conversation begins
/set [NAME VALUE]  temperature, top_p, max_tokens, seed; "none" leaves one to the model
/clear             begin a new conversation
/save FILE         write the conversation as JSON
/exit              leave, as Ctrl-D does
Ctrl-C stops an answer."""


class Terminal:
    """A chat; plain in a pipe, where answers alone go to stdout."""

    def __init__(self, source: Source, conversation: Conversation, sampling: Sampling) -> None:
        """Takes what answers, what has been said, and how answers are chosen."""
        self.source, self.conversation, self.sampling = source, conversation, sampling
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._notes = Console(stderr=not self.is_interactive, highlight=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._note(HELP),
            "system": self._system,
            "set": self._set,
            "clear": lambda _: self._clear(),
            "save": self._save,
        }

    def run(self) -> bool:
        """Answers until the input ends or asks to.

        Returns:
            Whether every question was answered.
        """
        fine = True
        if self.is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` its editing and history
            self._note(f"{self.source.name}. /help lists commands, /exit leaves, Ctrl-C stops an answer.")
        interrupted = False
        while True:
            try:  # a Ctrl-C may also come just before an answer, or just after
                if interrupted:
                    interrupted = False
                    self._note("\n/exit or Ctrl-D leaves")
                line = self._read()
                if line is None or line in ("/exit", "/quit"):
                    return fine
                if line.startswith("/"):
                    fine &= self._command(line)
                elif line:
                    fine &= self.answer(line)
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                interrupted = True
            except UnicodeDecodeError as error:
                self._note(f"error: the question is not UTF-8: {error}", "red")
                return False

    def _read(self) -> str | None:
        """A line of the input; None at its end."""
        try:
            return input("> " if self.is_interactive else "").strip()
        except EOFError:
            if self.is_interactive:
                self._notes.print()
            return None

    def answer(self, question: str) -> bool:
        """Asks, and shows the answer while it comes; Ctrl-C keeps what there is of it.

        Returns:
            Whether the model answered.
        """
        statistics, pieces, stopped = Statistics(), [], False
        stream = self.source.stream(self.conversation.with_question(question), self.sampling, statistics)
        try:
            for piece in stream:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            stopped = True
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except (OSError, ValueError, RuntimeError) as error:
            self._note(f"{chr(10) if pieces else ''}error: {' '.join(str(error).split())}", "red")
            return False
        finally:
            with contextlib.suppress(KeyboardInterrupt):  # pressed again, while the model comes to its end
                stream.close()  # type: ignore[attr-defined]  # it is a generator
        self.conversation.add(question, "".join(pieces))
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self.is_interactive:
            self._note(self._status(statistics, stopped))
        return True

    def _status(self, statistics: Statistics, stopped: bool) -> str:
        parts = [f"{statistics.tokens} tokens"]
        if statistics.speed is not None:
            parts.append(f"{statistics.speed:.1f} tokens/s")
        if statistics.tokens:
            parts.append(f"first after {statistics.first:.2f} s")
        if statistics.prompt_tokens is not None:
            of = f" of {self.source.context}" if self.source.context else ""
            parts.append(f"context {statistics.prompt_tokens + statistics.tokens}{of}")
        if (memory := self.source.memory()) is not None:
            parts.append(f"memory {memory / 1e9:.2f} GB")
        if stopped:
            parts.append("stopped")
        elif statistics.truncated:
            parts.append("cut off at max_tokens")
        return "[" + " · ".join(parts) + "]"

    def _command(self, line: str) -> bool:
        name, _, rest = line[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._note(f"there is no command /{name}; /help lists them", "red")
            return False
        try:
            command(rest.strip())
        except (OSError, ValueError) as error:
            self._note(f"error: {error}", "red")
            return False
        return True

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = text
            self._clear()
        else:
            self._note(self.conversation.system or "nothing")

    def _set(self, text: str) -> None:
        if text:
            name, _, value = text.partition(" ")
            self.sampling = self.sampling.changed(name, value.strip())
        values = (f"{name} {'none' if value is None else value}" for name, value in vars(self.sampling).items())
        self._note(", ".join(values))

    def _clear(self) -> None:
        self.conversation.turns.clear()
        self._note("a new conversation")

    def _save(self, path: str) -> None:
        if not path:
            raise ValueError("say where: /save FILE")
        self.conversation.save(Path(path).expanduser())
        self._note(f"wrote {path}")

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Text(text, style=style), soft_wrap=True)
