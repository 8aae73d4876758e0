"""How a server ends: it takes no more requests, those that it has get their time, and then all that is open ends."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator


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
        self._ends: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as long as the context lasts."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextlib.contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Has something ended when the server stops, as long as the context lasts; at once if it has stopped.

        Args:
            end: Ends it; called in the thread of the event loop.
        """
        self._ends.append(end)
        try:
            if self.stopped:
                end()
            yield
        finally:
            self._ends.remove(end)

    def stop(self) -> None:
        """Ends what is open."""
        self.stopped = True
        for end in self._ends.copy():
            end()


def expire(limit: asyncio.Timeout) -> None:
    """Has a time limit expire now.

    Args:
        limit: An `asyncio.timeout`, entered.
    """
    if not limit.expired():  # as it may have just now
        limit.reschedule(asyncio.get_running_loop().time())
