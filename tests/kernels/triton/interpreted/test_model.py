"""Layers and models whose products are the interpreted kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmint8
from llmint8 import Int8Config, Int8Linear, functional, ops
from llmint8.kernels import backend
from llmint8.kernels.triton import column_scores, int8_linear, quantize_rows, tiles
from llmint8.outliers import OutlierRule

SETTINGS = {"budget": {"budget": 4}, "threshold": {"threshold": 6.0}, "none": {}}


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    large = ((1 << 31, tiles.Tile(1, 256, 1024, 4, 1)),)
    monkeypatch.setattr(column_scores, "PROGRAMS", 2)
    monkeypatch.setattr(quantize_rows, "PROGRAMS", 2)
    monkeypatch.setattr(tiles, "tables", lambda device: tiles.Tables(tiles.MIXED_LINEAR[80], one_row=large))


@pytest.mark.parametrize("mode", ["budget", "threshold", "static", "none"])
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_layer_compiles_to_one_graph(mode: str, compiler: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = Int8Linear.from_float(nn.Linear(48, 24))
    layer.int8_config = Int8Config(mode=mode, **SETTINGS.get(mode, {"budget": 2}))
    if mode == "static":
        layer.set_outlier_columns(torch.tensor([3, 9]))
    compiled = torch.compile(lambda x: layer(x).relu(), fullgraph=True, backend=compiler)
    with torch.no_grad():
        for m in (1, 40):
            x = torch.randn(m, 48)
            assert torch.equal(compiled(x), layer(x).relu())


def test_two_layers_of_a_model_say_the_same_text(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    llmint8.quantize_(model)
    text = "The Amazon rainforest is home to many kinds of animals, and people who live near its rivers say that the"
    prompt = tokenizer(text * 2, return_tensors="pt").input_ids[:, :34]
    assert prompt.shape[1] > tiles.DECODE_ROWS

    calls = []
    monkeypatch.setattr(int8_linear, "mixed_linear", counting(int8_linear.mixed_linear, calls))
    said = tokenizer.decode(model.generate(prompt, max_new_tokens=3, do_sample=False)[0])
    assert len(calls) == 14  # of prefill; each token after it is decoded
    monkeypatch.setattr(backend, "BACKENDS", (backend.REFERENCE,))
    assert tokenizer.decode(model.generate(prompt, max_new_tokens=3, do_sample=False)[0]) == said
    assert len(calls) == 14


def counting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def count(*args: Any) -> Any:
        calls.append(args[0].shape)
        return function(*args)

    return count


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", ["budget", "static", "none"])
def test_where_pytorch_multiplies(mode: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tables", lambda device: tiles.built_in(75))
    calls = []
    monkeypatch.setattr(int8_linear, "int_mm_linear", counting(int8_linear.int_mm_linear, calls))
    torch.manual_seed(0)
    columns = torch.tensor([2, 5, 40])
    for n, k, supported in ((64, 96, True), (60, 96, False), (64, 90, False)):
        weight, scale = ops.quantize_weight(torch.randn(n, k))
        bias = torch.randn(n)
        for m in (17, 40):
            x = torch.randn(m, k)
            x[:, 5] *= 20
            calls.clear()
            rule = OutlierRule(mode, 0.0, 3, True, symmetric)
            y = int8_linear.int8_linear(x, weight, scale, bias, columns, rule)
            assert bool(calls) == supported
            expected = functional.weight_only_linear(x, weight, scale, bias)
            if supported:
                outliers = functional.select_outliers(x, columns, rule)
                expected = functional.mixed_linear(x, weight, scale, bias, outliers, symmetric)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)


def test_opcheck() -> None:
    torch.manual_seed(0)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    for w in (weight, weight.T.contiguous().T):
        torch.library.opcheck(torch.ops.llmint8.dequantize_weight, (w, scale, torch.float16))
        for m in (3, 40):
            arguments = (torch.randn(m, 48, requires_grad=True), w, scale, None, None, "budget", 0.0, 5, True, False)
            torch.library.opcheck(torch.ops.llmint8.int8_linear, arguments)
    for shape in ((24, 48), (1, 5), (7, 5)):
        torch.library.opcheck(torch.ops.llmint8.quantize_weight, (torch.randn(shape),))
    assert ops.quantize_weight(torch.randn(1, 5))[0].stride() == (5, 1)
