"""What is known of a request while it is answered: for its line in the log, for the metrics, and to cancel it."""

import contextvars
import time
from dataclasses import dataclass, field

from llmint8.generation.answer import Answer


@dataclass(eq=False)
class Record:
    """A request.

    Attributes:
        id: Its own, also in the answer.
        method: HTTP method.
        path: Without the query.
        client: The address that it came from.
        start: Time of its start, of `time.perf_counter`.
        status: HTTP status of the response; 499 if the client hung up before one was sent, as nginx logs it.
        answer: What is generated for it.
        gone: Whether the client has hung up.
    """

    id: str
    method: str
    path: str
    client: str
    start: float = field(default_factory=time.perf_counter)
    status: int = 499
    answer: Answer | None = None
    gone: bool = False

    def hang_up(self) -> None:
        """Notes that the client has hung up: nothing more is generated for it."""
        self.gone = True
        if self.answer is not None:
            self.answer.cancel()


current: contextvars.ContextVar[Record | None] = contextvars.ContextVar("current request", default=None)
