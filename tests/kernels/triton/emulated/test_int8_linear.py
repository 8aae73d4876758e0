"""The compiled kernels against `functional`, on several architectures, with their launches and traffic."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ptxemu import emulate
from torch import Tensor, nn

from kernel_contract import DTYPES, allowed
from llmint8 import Int8Linear, functional, ops, quantize_
from llmint8.kernels import backend
from llmint8.kernels.triton import quantize_rows, tiles, tuning
from llmint8.kernels.triton.int8_linear import int8_linear
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.weight_only_linear import weight_only_linear
from llmint8.outliers import OutlierRule

# An emulator takes minutes, and the code for 86 is that for 80: LLMINT8_EMULATE=all runs both, and 120.
ARCHITECTURES = (80, 86, 89, 120) if os.environ.get("LLMINT8_EMULATE") == "all" else (80, 89)
COLUMNS = torch.tensor([3, 9, 3])
RULES = {
    "threshold": OutlierRule("threshold", threshold=6.0),
    "budget": OutlierRule("budget", threshold=3.5, budget=5, relative=True),
    "static": OutlierRule("static", budget=2),
    "none": OutlierRule("none"),
}
PREFILL = {"threshold": 3, "budget": 3, "static": 2, "none": 2}


@pytest.fixture(params=ARCHITECTURES, ids="sm_{}".format)
def emulator(request: pytest.FixtureRequest) -> Iterator[Any]:
    tiles._tables.cache_clear()
    with emulate(cc=request.param, patch_torch=True, is_cuda=True, exact_views=True, races=True) as running:
        yield running


def make_input(m: int, k: int, dtype: torch.dtype, strided: bool = False) -> Tensor:
    x = torch.randn(m, k).clamp(-2, 2)
    x[m // 2, [3, k // 2]] = 60
    return torch.stack([x, x + 1], dim=1).to(dtype)[:, 0] if strided else x.to(dtype)


def check(y: Tensor, expected: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> None:
    """The contract's bounds, for a bias of the size of 1."""
    limit = allowed(x, weight, scale, None, expected) + torch.finfo(x.dtype).eps
    wrong = (y.float() - expected.float()).abs() > limit
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}, first at {wrong.nonzero()[0].tolist()}"


def run_layer(x: Tensor, n: int, mode: str, symmetric: bool) -> tuple[Tensor, Int8Linear]:
    layer = Int8Linear.from_float(nn.Linear(x.shape[1], n, dtype=x.dtype))
    layer.outlier_rule = RULES[mode]._replace(symmetric=symmetric)
    layer.set_outlier_columns(COLUMNS if mode == "static" else None)
    with torch.no_grad():
        return layer(x), layer


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", RULES)
def test_the_whole_layer(emulator: Any, mode: str, symmetric: bool) -> None:
    torch.manual_seed(0)
    case = list(RULES).index(mode) + 2 * symmetric
    sizes = ((33, 31, 7), (70, 100, 129), (40, 576, 64))
    for i in (case, case + 1):  # each mode meets two of the sizes, symmetric and not other ones, in changing dtypes
        m, k, n = sizes[i % 3]
        x = make_input(m, k, DTYPES[(i + case) % 3], strided=m == 70)
        emulator.launches.clear()
        y, layer = run_layer(x, n, mode, symmetric)
        _, *launches = emulator.launches  # the first one quantized the weight
        assert len(launches) == PREFILL[mode]  # and the zeros that the scores start from
        weight, scale, bias = layer.weight, layer.weight_scale, layer.bias
        outliers = functional.select_outliers(x, layer.outlier_columns, RULES[mode])
        expected = functional.mixed_linear(x, weight, scale, bias, outliers, symmetric)
        check(y, expected, x, weight, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_whole_layer_decoding(emulator: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for m, k, n in ((1, 100, 70), (1, 576, 64), (5, 257, 129), (32, 64, 33)):
        x = make_input(m, k, dtype, strided=m == 5)
        emulator.launches.clear()
        y, layer = run_layer(x, n, "budget", symmetric=False)
        assert len(emulator.launches) == 2  # one of them quantized the weight
        expected = functional.weight_only_linear(x, layer.weight, layer.weight_scale, layer.bias)
        check(y, expected, x, layer.weight, layer.weight_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile(emulator: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tables = tiles.built_in(emulator.cc)
    for kind, table in (("mixed", tables.mixed_linear), ("weight only", tables.weight_only_linear)):
        for most, tile in table:
            # Enough turns of the loop for each stage of the pipeline to come round, the last one whole or not.
            turns = tile.num_stages * tile.block_k * tile.unroll
            for k in (turns, turns - 16) if dtype == torch.float16 else (turns - 16,):
                m = min(most, tile.block_m + 3)
                x = make_input(m, k, dtype)
                weight, scale = functional.quantize_rowwise(torch.randn(tile.block_n - 7, k))
                if kind == "weight only":
                    y = weight_only_linear(x, weight, scale, None, tile)
                    expected = functional.weight_only_linear(x, weight, scale)
                elif dtype == torch.float32 and most > tiles.FP32_ROWS:
                    continue  # such a tile is not for fp32
                else:
                    rows = quantize_rows.quantize_rows(x, None, OutlierRule("budget", budget=37, relative=True))
                    y = mixed_linear(x, rows, weight, scale, None, tile)
                    outliers = functional.select_outliers(x, None, OutlierRule("budget", budget=37, relative=True))
                    expected = functional.mixed_linear(x, weight, scale, None, outliers, False)
                check(y, expected, x, weight, scale)


def test_decoding_reads_each_byte_of_the_weight_once(emulator: Any) -> None:
    for k, n in ((576, 129), (1600, 70), (101, 33)):
        weight, scale = functional.quantize_rowwise(torch.randn(n, k))
        for m in (1, 2, 16, 17, 32):
            emulator.launches.clear()
            int8_linear(
                torch.randn(m, k).half(), weight, scale, None, None, OutlierRule("budget", budget=5, relative=True)
            )
            assert [launch.loaded["weight"] for launch in emulator.launches] == [n * k]


def test_prefill_reads_only_outlier_columns_of_the_weight_twice(emulator: Any) -> None:
    for k, n in ((576, 129), (80, 33)):
        weight, scale = functional.quantize_rowwise(torch.randn(n, k))
        for symmetric in (True, False):
            emulator.launches.clear()
            int8_linear(
                torch.randn(40, k).half(), weight, scale, None, None, OutlierRule("budget", 0.0, 5, True, symmetric)
            )
            assert emulator.launches[-1].loaded["weight"] == n * (k + 5)
            assert emulator.launches[-1].mma  # tensor cores


def test_x_is_read_once_more_than_necessary(emulator: Any) -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(32, 576))
    int8_linear(torch.randn(40, 576).half(), weight, scale, None, None, OutlierRule("budget", budget=5, relative=True))
    scores, quantize, product = emulator.launches
    assert scores.loaded["x"] == quantize.loaded["x"] == 40 * 576 * 2
    assert product.loaded["x"] == 40 * 5 * 2


@pytest.mark.parametrize("mode", RULES)
def test_extreme_sizes(emulator: Any, mode: str) -> None:
    torch.manual_seed(0)
    for m, k, n in ((1, 1, 1), (5, 1, 3), (40, 1, 1), (40, 2, 1), (40, 5, 1), (600, 17, 9)):
        x = make_input(m, k, torch.float16) if k > 3 else torch.randn(m, k).half()
        weight, scale = functional.quantize_rowwise(torch.randn(n, k))
        columns = torch.tensor([0, 0]) if mode == "static" else None
        y = int8_linear(x, weight, scale, None, columns, RULES[mode])
        expected = functional.weight_only_linear(x, weight, scale)
        if m > tiles.DECODE_ROWS:
            outliers = functional.select_outliers(x, columns, RULES[mode])
            expected = functional.mixed_linear(x, weight, scale, None, outliers, False)
        check(y, expected, x, weight, scale)


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
@pytest.mark.parametrize("k", [16383, 16385, 30011])
def test_long_rows(emulator: Any, k: int) -> None:
    torch.manual_seed(k)
    x = make_input(33, k, torch.float16)
    weight, scale = functional.quantize_rowwise(torch.randn(3, k))
    for mode, symmetric in (("budget", False), ("static", True)):
        columns = COLUMNS if mode == "static" else None
        y = int8_linear(x, weight, scale, None, columns, RULES[mode]._replace(symmetric=symmetric))
        outliers = functional.select_outliers(x, columns, RULES[mode])
        check(y, functional.mixed_linear(x, weight, scale, None, outliers, symmetric), x, weight, scale)


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
def test_rows_that_lie_far_apart(emulator: Any) -> None:
    torch.manual_seed(0)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 64))
    for m, stride in ((20, 1 << 27), (33, 1 << 26)):
        x = torch.empty((m - 1) * stride + 64, dtype=torch.float16).as_strided((m, 64), (stride, 1))  # never touched
        x.copy_(make_input(m, 64, torch.float16))
        y = int8_linear(x, weight, scale, None, None, RULES["budget"])
        assert torch.equal(y, int8_linear(x.contiguous(), weight, scale, None, None, RULES["budget"]))


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
def test_thresholds_and_columns_at_the_edge(emulator: Any) -> None:
    torch.manual_seed(0)
    x = make_input(40, 48, torch.float16)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    for threshold in (-1.0, 0.0, 1e-46, 60.0, 1e39, torch.inf):
        y = int8_linear(x, weight, scale, None, None, OutlierRule("threshold", threshold))
        outliers = functional.select_outliers(x, None, OutlierRule("threshold", threshold))
        check(y, functional.mixed_linear(x, weight, scale, None, outliers, False), x, weight, scale)
    for columns in (torch.empty(0, dtype=torch.long), torch.arange(48).repeat(2)):
        y = int8_linear(x, weight, scale, None, columns, OutlierRule("static"))
        outliers = functional.select_outliers(x, columns, OutlierRule("static"))
        check(y, functional.mixed_linear(x, weight, scale, None, outliers, False), x, weight, scale)


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
def test_bad_input_is_refused_before_anything_is_launched(emulator: Any) -> None:
    x = torch.randn(40, 48)
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    for m in (1, 20, 40):
        with pytest.raises(ValueError, match="mode must be"):
            ops.int8_linear(x[:m], weight, scale, rule=OutlierRule("median"))
    with pytest.raises(ValueError, match="calibrate"):
        ops.int8_linear(x, weight, scale, rule=OutlierRule("static"))
    with pytest.raises(TypeError, match=r"outlier_columns must be int64, got torch\.bool"):
        ops.int8_linear(x, weight, scale, None, torch.zeros(48, dtype=torch.bool), OutlierRule("static"))
    for bad in (scale[:1], scale[:-1], scale.flatten()):
        with pytest.raises(ValueError, match="weight_scale"):
            ops.dequantize_weight(weight, bad)
    assert emulator.launches == []


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
def test_gradients_go_through_the_dequantized_weight(emulator: Any) -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    for m in (3, 40):
        x, grad = torch.randn(m, 48, requires_grad=True), torch.randn(m, 24)
        ops.int8_linear(x, weight, scale).backward(grad)
        torch.testing.assert_close(x.grad, grad @ functional.dequantize(weight, scale))


def test_weights_are_quantized_and_dequantized_to_the_bit(emulator: Any) -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        weight = torch.randn(70, 333).to(dtype)
        weight[3] = 0
        codes, scale = ops.quantize_weight(weight)
        expected = functional.quantize_rowwise(weight)
        assert torch.equal(codes, expected[0])
        assert torch.equal(scale, expected[1])
        assert torch.equal(ops.dequantize_weight(codes, scale, dtype), functional.dequantize(codes, scale, dtype=dtype))
    assert {launch.kernel for launch in emulator.launches} == {"quantize_rows_kernel", "dequantize_weight_kernel"}


def test_a_row_that_is_not_finite_spoils_itself_only(emulator: Any) -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(24, 48))
    for m in (1, 3, 40):
        for bad in (torch.nan, torch.inf):
            for symmetric in (True, False):
                x = torch.randn(m, 48).half()
                x[m // 2, 6] = bad
                y = int8_linear(x, weight, scale, None, COLUMNS, OutlierRule("static", 0.0, 2, False, symmetric))
                spoilt = torch.arange(m) == m // 2
                assert not y[spoilt].isfinite().any()
                assert y[~spoilt].isfinite().all()


@pytest.mark.parametrize("emulator", [80], indirect=True, ids="sm_{}".format)
def test_a_model_says_the_same(emulator: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    prompt = torch.randint(1, 128, (1, 40))
    quantize_(model.eval())
    y = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert any(launch.kernel == "mixed_linear_kernel" for launch in emulator.launches)
    assert any(launch.kernel == "one_row_kernel" for launch in emulator.launches)
    launched = len(emulator.launches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "BACKENDS", (backend.REFERENCE,))
        assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None), y)
    assert len(emulator.launches) == launched


@pytest.mark.parametrize("emulator", [86], indirect=True, ids="sm_{}".format)
def test_tuning_finds_tiles_that_fit(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(tuning, "_time", lambda call: (call(), tried.append(1), float(len(tried)))[2])
    monkeypatch.setattr(tuning, "ONE_ROW", tuning.ONE_ROW[:2])
    too_large = tiles.Tile(128, 256, 128, 8, 5)
    monkeypatch.setattr(tuning, "candidates", lambda table: [too_large, *(tile for _, tile in table[:2])])
    for name in ("MIXED_ROWS", "WEIGHT_ONLY_ROWS"):
        monkeypatch.setattr(tuning, name, ((16, 16), (1 << 31, 20)))
    lines = []
    tables = tuning.tune([(64, 64)], torch.device("cpu"), lines.append)
    assert [most for most, _ in tables.mixed_linear] == [16, 1 << 31]
    assert too_large not in [tile for _, tile in (*tables.mixed_linear, *tables.weight_only_linear)]
    assert tiles.built_in(80).updated_from_json(tables.to_json()) == tables
    assert len(lines) == 5
