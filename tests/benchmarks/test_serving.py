"""The load of `llmint8 serve`."""

import math

import pytest
import serving


def test_growth_compares_the_end_with_what_follows_the_warm_up() -> None:
    memory = [(float(at), 200 if at < 20 else 100 if at < 60 else 104) for at in range(121)]
    assert serving.growth(memory, warm_up=20, end=120) == pytest.approx(0.04)
    assert math.isnan(serving.growth([], warm_up=20, end=120))


def test_every_client_asks_something_else() -> None:
    assert len({serving.question(client) for client in range(64)}) == 64
