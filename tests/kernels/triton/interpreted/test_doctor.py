"""The self-check of `llmint8 doctor` on the interpreted kernels, with the tables of several GPUs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmint8 import doctor
from llmint8.kernels.triton import int8_linear, quantize_rows, tiles

CPU = torch.device("cpu")
PRODUCTS = ("weight_only_linear", "dequantized_linear", "int_mm_linear", "mixed_linear")
# For inputs in fp32 and fp16: a token, some rows, a prompt.
RUN = {
    75: ["weight_only_linear"] * 4 + ["int_mm_linear"] * 2,
    89: ["weight_only_linear"] * 4 + ["mixed_linear"] * 2,
    90: ["weight_only_linear"] * 4 + ["mixed_linear", "dequantized_linear"],
    103: ["weight_only_linear"] * 4 + ["weight_only_linear", "dequantized_linear"],
}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the products that are run, in order."""
    names: list[str] = []

    def recording(name: str) -> Callable[..., Any]:
        function = getattr(int8_linear, name)

        def run(*args: Any) -> torch.Tensor:
            names.append(name)
            return function(*args)

        return run

    for name in PRODUCTS:
        monkeypatch.setattr(int8_linear, name, recording(name))
    return names


def use_tables_of(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_rows, "PROGRAMS", 2)
    monkeypatch.setattr(tiles, "architecture", lambda device: architecture)
    monkeypatch.setattr(tiles, "tables", lambda device: tiles.built_in(architecture))


@pytest.mark.parametrize("architecture", RUN)
def test_passes_with_every_product(architecture: int, products: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use_tables_of(architecture, monkeypatch)
    check = doctor._check(CPU)
    assert check.passed
    assert products == RUN[architecture]


@pytest.mark.parametrize("product", ["weight_only_linear", "dequantized_linear", "mixed_linear"])
def test_notices_a_wrong_product(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tables_of(90, monkeypatch)
    right = getattr(int8_linear, product)
    monkeypatch.setattr(int8_linear, product, lambda *args: right(*args) * 1.01)
    assert not doctor._check(CPU).passed
