"""Plots: files of the right kind that say what they show."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from llmint8.analysis import (
    InputOutliers,
    LayerError,
    OutlierColumn,
    OutlierReport,
    plot_layer_errors,
    plot_outliers,
    plots,
)

KINDS = {"self_attn.q_proj/k_proj/v_proj": 64, "mlp.down_proj": 96}


def make_report(features: bool = True) -> OutlierReport:
    column = OutlierColumn(17, 1.0, 0.5, (-9.0, -8.0, -7.0), True, 12.0)
    inputs = [
        InputOutliers((f"layers.{n}.{kind}",), f"layers.{n}", kind, width, width == 64, 100, 0.5, columns)
        for n in range(3)
        for kind, width in KINDS.items()
        for columns in [(column,) * (n + 1) if features else ()]
    ]
    return OutlierReport(6.0, False, 100, 64, 0.25, 0.06, (column,) if features else (), tuple(inputs))


def make_errors(kl: float | None) -> list[LayerError]:
    return [
        LayerError(f"layers.{n}.{kind}", f"layers.{n}", kind, 0.02, 0.01, 0.0 if n == 1 else 0.015, kl)
        for n in range(3)
        for kind in ("self_attn.q_proj", "mlp.down_proj")
    ]


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def texts_of_svg(path: Path) -> str:
    """What an SVG says: matplotlib draws letters as curves and keeps each text as a comment."""
    content = path.read_text(encoding="utf-8")
    ElementTree.fromstring(content)
    return content


@pytest.mark.parametrize("suffix", ["png", "PNG"])
def test_png(suffix: str, tmp_path: Path) -> None:
    path = plot_outliers(make_report(), tmp_path / f"outliers.{suffix}")
    assert path == tmp_path / f"outliers.{suffix}"
    width, height = size_of_png(path)
    assert width == 1080  # 9 inches
    assert height > 300
    assert size_of_png(plot_layer_errors(make_errors(None), tmp_path / f"errors.{suffix}"))[0] == 1080


def test_outliers_are_labelled(tmp_path: Path) -> None:
    texts = texts_of_svg(plot_outliers(make_report(), tmp_path / "outliers.svg"))
    for text in ("<!-- * 17 -->", "transformer layer", "positions, %", "at least 6", *KINDS):
        assert text in texts
    assert "none in 1 %" not in texts


def test_a_model_without_outliers(tmp_path: Path) -> None:
    texts = texts_of_svg(plot_outliers(make_report(features=False), str(tmp_path / "outliers.svg")))
    assert "none in 1 %" in texts


@pytest.mark.parametrize("kl", [None, 0.001])
def test_layer_errors_are_labelled(kl: float | None, tmp_path: Path) -> None:
    texts = texts_of_svg(plot_layer_errors(make_errors(kl), tmp_path / "errors.svg"))
    for text in ("error by int8 weights", "error by int8 activations", "self_attn.q_proj", "mlp.down_proj"):
        assert text in texts
    assert ("nats per token" in texts) == (kl is not None)


def test_refuses_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_figure", lambda height: pytest.fail("drawn"))
    for name in ("plot.jpg", "plot", "png"):
        with pytest.raises(ValueError, match=r"\.png or \.svg, got"):
            plot_outliers(make_report(), tmp_path / name)
        with pytest.raises(ValueError, match=r"\.png or \.svg, got"):
            plot_layer_errors(make_errors(None), tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        plot_outliers(make_report(), tmp_path / "absent" / "plot.png")
    with pytest.raises(ValueError, match="no layer errors"):
        plot_layer_errors([], tmp_path / "errors.png")
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_pyplot_is_left_alone(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_outliers(make_report(), tmp_path / "outliers.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
