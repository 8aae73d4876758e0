"""The address of a server, and its settings."""

import pytest

from llmint8.serving import Settings
from llmint8.serving.server import bind


def test_an_address_is_taken_from_the_beginning() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(OSError, match="cannot listen on 127.0.0.1"):
        bind("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("key", ["", " ", " key", "key\n", "k\x00y", "k\ty", "sch\u00fcssel"])
def test_keys_that_no_client_could_send(key: str) -> None:
    with pytest.raises(ValueError, match="API key must be"):
        Settings(api_key=key)
    assert Settings(api_key="a key").api_key == "a key"
