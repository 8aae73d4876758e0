import pytest

from llmint8.chat.source import Sampling, Statistics


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        Sampling(**{setting: value})


def test_settings_change_by_name() -> None:
    sampling = Sampling().changed("temperature", "0.5").changed("max_tokens", "7")
    assert sampling == Sampling(temperature=0.5, max_tokens=7)
    assert sampling.changed("temperature", "none") == Sampling(max_tokens=7)
    with pytest.raises(ValueError, match="no setting 'heat'; there are temperature, top_p, max_tokens, seed"):
        sampling.changed("heat", "1")
    with pytest.raises(ValueError, match="max_tokens must be a number or none, got '1.5'"):
        sampling.changed("max_tokens", "1.5")


def test_speed_is_that_after_the_first_token() -> None:
    assert Statistics(tokens=11, first=1.0, seconds=3.0).speed == 5.0
    assert Statistics(tokens=1, first=1.0, seconds=1.0).speed is None
