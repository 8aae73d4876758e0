"""What a server is told when it starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and the key of a server.

    Attributes:
        api_key: Clients must send it as `Authorization: Bearer ...`; None lets everybody in.
        max_tokens: Most tokens of an answer, and those of one whose request does not say.
        max_prompt_tokens: Most tokens of a prompt; the context of the model may be shorter.
        max_queue: Requests that may wait for a place; more get 429.
        max_body: Most bytes of a request.
        slots: Answers that are generated at the same time; None for as many as is best, 1 for one after another.
        shutdown_seconds: That answers have to end once the server is told to stop.
    """

    api_key: str | None = None
    max_tokens: int = 1024
    max_prompt_tokens: int = 4096
    max_queue: int = 128
    max_body: int = 1 << 20
    slots: int | None = None
    shutdown_seconds: int = 20

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            ValueError: One is out of range.
        """
        for name, least in (("max_tokens", 1), ("max_prompt_tokens", 1), ("max_queue", 0), ("max_body", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.shutdown_seconds < 0:
            raise ValueError(f"shutdown_seconds must be at least 0, got {self.shutdown_seconds}")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise ValueError("the API key must be printable ASCII, not empty, and without spaces around it")
