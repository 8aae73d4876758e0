"""What has been said so far."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from llmint8.chat.source import Message


@dataclass
class Conversation:
    """The messages of a chat.

    Attributes:
        system: What the model is told beforehand; nothing if empty.
        turns: Questions and answers in turn.
    """

    system: str = ""
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All messages, as a chat template takes them."""
        beginning = [{"role": "system", "content": self.system}] if self.system else []
        return [*beginning, *self.turns]

    def ask(self, question: str) -> None:
        """Adds a question."""
        self.turns.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        """Adds the answer, or, if there is none, takes the question back."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()

    def save(self, path: Path) -> None:
        """Writes the messages as JSON.

        Raises:
            OSError: The file exists already, or cannot be written.
        """
        with path.open("x", encoding="utf-8") as stream:
            json.dump(self.messages, stream, ensure_ascii=False, indent=1)
