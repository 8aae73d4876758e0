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
        beginning = [_message("system", self.system)] if self.system else []
        return [*beginning, *self.turns]

    def with_question(self, question: str) -> list[Message]:
        """Returns all messages and a question, which is not added."""
        return [*self.messages, _message("user", question)]

    def add(self, question: str, answer: str) -> None:
        """Adds a question and its answer; nothing if there is no answer."""
        if answer:
            self.turns += [_message("user", question), _message("assistant", answer)]

    def save(self, path: Path) -> None:
        """Writes the messages as JSON.

        Raises:
            OSError: The file exists already, or cannot be written.
            ValueError: There is text that is not Unicode.
        """
        content = json.dumps(self.messages, ensure_ascii=False, indent=1).encode()
        with path.open("xb") as stream:
            stream.write(content)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
