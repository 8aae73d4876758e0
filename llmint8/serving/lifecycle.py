"""How a server ends: it takes no more requests, those that it has get their time, and then all that is open ends."""

import asyncio
import contextlib
from collections.abc import Iterator


class Lifecycle:
    """What the parts of one server know of its end.

    Attributes:
        stopping: Whether it takes no more requests.
        stopped: Whether what is still open has been ended.
        in_flight: Requests of the API that are not over.
    """

    def __init__(self) -> None:
        """A server that runs."""
        self.stopping = self.stopped = False
        self.in_flight = 0
        self._limits: set[asyncio.Timeout] = set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as long as the context lasts."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextlib.contextmanager
    def ends(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Has a time limit expire when the server stops, as long as the context lasts.

        Args:
            limit: Of `asyncio.timeout`, entered.
        """
        self.watch(limit)
        try:
            yield
        finally:
            self.forget(limit)

    def watch(self, limit: asyncio.Timeout) -> None:
        """As `ends`, until `forget`.

        Args:
            limit: Of `asyncio.timeout`, entered.
        """
        self._limits.add(limit)
        if self.stopped:
            self._expire(limit)

    def forget(self, limit: asyncio.Timeout) -> None:
        """Takes `watch` back; does nothing where there was none.

        Args:
            limit: Of `asyncio.timeout`.
        """
        self._limits.discard(limit)

    def stop(self) -> None:
        """Ends what is open."""
        self.stopped = True
        for limit in self._limits:
            self._expire(limit)

    def _expire(self, limit: asyncio.Timeout) -> None:
        limit.reschedule(asyncio.get_running_loop().time())
