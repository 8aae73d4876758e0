"""The kernels on the GPU that is here, if there is one: `make gpu`."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kernel_contract
from kernel_contract import DTYPES
from llmint8 import Int8Linear, functional, ops, quantize_

pytest.importorskip("triton")

from llmint8.kernels import backend
from llmint8.kernels.triton import tiles
from llmint8.outliers import OutlierRule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

COLUMNS = torch.tensor([3, 9, 3])
RULES = {
    "threshold": OutlierRule("threshold", threshold=6.0),
    "budget": OutlierRule("budget", budget=32, relative=True),
    "many": OutlierRule("budget", threshold=1e-3, budget=144, relative=True),
    "static": OutlierRule("static", budget=2),
    "none": OutlierRule("none"),
}


def make(m: int, k: int, n: int, dtype: torch.dtype, mode: str, symmetric: bool) -> tuple[Int8Linear, Tensor]:
    torch.manual_seed(m + k + n)
    layer = Int8Linear.from_float(nn.Linear(k, n, device="cuda", dtype=dtype))
    layer.outlier_rule = RULES[mode]._replace(symmetric=symmetric)
    layer.set_outlier_columns(COLUMNS.cuda() % k if mode == "static" else None)
    x = torch.randn(m, k, device="cuda")
    x[m // 2, :: max(1, k // 5)] *= 30
    return layer, x.to(dtype)


def check(y: Tensor, x: Tensor, layer: Int8Linear) -> None:
    """Compares with `functional` on the CPU: the order of fp32 sums, and one rounding on either side."""
    x, y = x.cpu(), y.cpu()
    weight, scale = layer.weight.cpu(), layer.weight_scale.cpu()
    bias = None if layer.bias is None else layer.bias.detach().cpu()
    tables, w = tiles.tables(layer.weight.device), functional.dequantize(weight, scale)
    dequantized = tables.dequantize and x.dtype != torch.float32
    columns = None if layer.outlier_columns is None else layer.outlier_columns.cpu()
    decode_rows = len(x) if dequantized else tables.decode_rows
    expected = kernel_contract.expected(x, weight, scale, bias, columns, layer.outlier_rule, decode_rows)
    limit = kernel_contract.allowed(x, weight, scale, bias, expected) + torch.finfo(x.dtype).eps
    if dequantized and len(x) > tables.decode_rows:  # each weight is rounded, too
        limit = limit + torch.finfo(x.dtype).eps / 2 * (x.float().abs() @ w.abs().T)
    # A score that another order of sums moves by one rounding may choose another column of two that are all but equal.
    wrong = ((y.float() - expected.float()).abs() > limit).any(dim=1).float().mean()
    assert wrong <= 0.01, f"{wrong:.1%} of the rows differ"


@pytest.fixture
def int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for prompts in int8, also where this GPU would dequantize."""
    tables = tiles.tables(torch.device("cuda", torch.cuda.current_device()))
    monkeypatch.setattr(tiles, "_tables", lambda *_: replace(tables, dequantize=False, decode_rows=32))


def check_layers(rows: tuple[int, ...], dtype: torch.dtype, mode: str, symmetric: bool) -> None:
    sizes = ((100, 70), (257, 129), (31, 7), (576, 64), (4096, 1024))
    for m, (k, n) in itertools.product(rows, sizes):
        layer, x = make(m, k, n, dtype, mode, symmetric)
        assert backend.backend_of("cuda") is backend.TRITON
        y = layer(x)
        check(y, x, layer)
        assert torch.equal(layer(x), y)  # launched as it was before


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("int8_products")
@torch.no_grad()
def test_prompts(dtype: torch.dtype, mode: str, symmetric: bool) -> None:
    check_layers((33, 130, 700), dtype, mode, symmetric)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_few_rows_and_what_this_gpu_does_with_many(dtype: torch.dtype) -> None:
    check_layers((1, 2, 16, 17, 32, 33, 128, 700), dtype, "budget", False)


@pytest.mark.usefixtures("int8_products")
@torch.no_grad()
def test_long_rows() -> None:
    layer, x = make(70, 28672, 256, torch.bfloat16, "budget", False)
    check(layer(x), x, layer)


@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("m", [1, 8, 100])
@pytest.mark.usefixtures("int8_products")
@torch.no_grad()
def test_no_wait_and_cuda_graphs(m: int, mode: str) -> None:
    layer, x = make(m, 512, 256, torch.bfloat16, mode, False)
    y = layer(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = layer(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x)
    x.mul_(-2)
    graph.replay()
    assert torch.equal(captured, layer(x))


@torch.no_grad()
def test_compiled_to_cuda_graphs() -> None:
    model = quantize_(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 64)).cuda().bfloat16())
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    for m in (1, 100):
        x = torch.randn(m, 256, device="cuda").bfloat16()
        for _ in range(4):
            torch.testing.assert_close(compiled(x).clone(), model(x), rtol=0.02, atol=0.02)


def test_weights_are_quantized_and_dequantized_to_the_bit() -> None:
    for dtype in DTYPES:
        weight = torch.randn(300, 1000).to(dtype)
        codes, scale = ops.quantize_weight(weight.cuda())
        expected: Any = functional.quantize_rowwise(weight)
        assert torch.equal(codes.cpu(), expected[0])
        assert torch.equal(scale.cpu(), expected[1])
        values = functional.dequantize(*expected, dtype=dtype)
        assert torch.equal(ops.dequantize_weight(codes, scale, dtype).cpu(), values)


@torch.no_grad()
def test_a_row_that_is_not_finite_spoils_itself_only() -> None:
    for m, bad, mode, symmetric in itertools.product((1, 3, 40), (torch.nan, torch.inf), RULES, (True, False)):
        layer, x = make(m, 48, 24, torch.float16, mode, symmetric)
        x[m // 2, 6] = bad
        spoilt = torch.arange(m) == m // 2
        y = layer(x).cpu()
        assert not y[spoilt].isfinite().any()
        assert y[~spoilt].isfinite().all()


def test_gradients_go_through_the_dequantized_weight() -> None:
    for m in (3, 100):
        layer, x = make(m, 100, 70, torch.float32, "budget", False)
        x.requires_grad_()
        grad = torch.randn(m, 70, device="cuda")
        layer(x).backward(grad)
        torch.testing.assert_close(x.grad, grad @ layer.dequantized_weight(), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_on_another_stream() -> None:
    layer, x = make(100, 512, 256, torch.bfloat16, "budget", False)
    y, stream = layer(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = layer(x)
    stream.synchronize()
    assert torch.equal(other, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
@torch.no_grad()
def test_on_a_device_that_is_not_the_current_one() -> None:
    for m in (1, 8, 100):
        layer, x = make(m, 100, 70, torch.float16, "budget", False)
        x, y = x.to("cuda:1"), layer(x)
        assert torch.equal(layer.to("cuda:1")(x).cpu(), y.cpu())
        assert layer.dequantized_weight().device == torch.device("cuda:1")
        assert torch.equal(ops.quantize_weight(x)[0].cpu(), ops.quantize_weight(x.cpu())[0])
