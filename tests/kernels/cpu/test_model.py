"""The native fused operators, on every instruction set that this processor has, against their references."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from llmint8 import functional, ops
from llmint8.kernels.cpu import native
from llmint8.ops.model import ACTIVATIONS
from llmint8.outliers import OutlierRule

if not native.load():
    pytest.skip("there is no compiler for the native kernels", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BUDGET = OutlierRule("budget", 0.0, 5, True, False)


@pytest.fixture(params=native.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(native.instruction_sets()[0])


def layers(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[list, list, list, list]:
    quantized = [functional.quantize_rowwise(torch.randn(shape) / shape[1] ** 0.5) for shape in shapes]
    biases = [torch.randn(n).to(dtype) if i % 2 else None for i, (n, _) in enumerate(shapes)]
    return [q for q, _ in quantized], [s for _, s in quantized], biases, [None] * len(shapes)


def one_rounding(y: Tensor, exact: Tensor, relative: float = 1e-5) -> None:
    """fp32 inside, so the error is one rounding to the dtype, and a few of fp32."""
    error = (y.double() - exact).abs()
    assert (error <= (torch.finfo(y.dtype).eps + relative) * exact.abs() + 1e-6).all(), error.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 3, 8, 9, 40])
def test_int8_linears_are_int8_linear(isa: str, m: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, m, 100).to(dtype)
    weights, scales, biases, columns = layers((129, 100), (7, 100), (64, 100), dtype=dtype)
    for rule in (BUDGET, OutlierRule("threshold", 2.0, 0, False, True), OutlierRule("none", 0.0, 0, False, False)):
        results = ops.int8_linears(x, weights, scales, biases, columns, rule)
        for y, w, s, b in zip(results, weights, scales, biases, strict=True):
            assert torch.equal(y, ops.int8_linear(x, w, s, b, None, rule))


def test_static_columns_may_differ_between_layers(isa: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 64)
    weights, scales, biases, _ = layers((30, 64), (40, 64))
    rule = OutlierRule("static", 0.0, 2, True, False)
    for columns in ([torch.tensor([1, 5]), torch.tensor([1, 5])], [torch.tensor([1, 5]), torch.tensor([7, 9])]):
        results = ops.int8_linears(x, weights, scales, biases, columns, rule)
        for y, w, s, b, c in zip(results, weights, scales, biases, columns, strict=True):
            assert torch.equal(y, ops.int8_linear(x, w, s, b, c, rule))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 8, 30])
def test_gated_mlp(isa: str, m: int, activation: str, dtype: torch.dtype) -> None:
    """Against the layers one by one in fp32, whose results the operator does not round in between."""
    torch.manual_seed(0)
    x = (3 * torch.randn(m, 96)).to(dtype)
    args = layers((130, 96), (130, 96), (70, 130), dtype=dtype)
    rule = OutlierRule("none", 0.0, 0, False, False)
    y = ops.gated_mlp(x, *args, activation, 0, rule)
    expected = torch.ops.llmint8.gated_mlp_fallback(x.float(), *args, activation, 0, *rule)
    assert y.dtype == dtype
    # The hidden state is rounded to the dtype, and in prefill to 255 steps per row: as many errors of half a step, of
    # random sign, as there are terms in a sum.
    relative = torch.finfo(dtype).eps + (2 / 255 if m > 8 else 0)
    bound = 6 * relative * expected.square().mean().sqrt() + torch.finfo(dtype).eps * expected.abs()
    assert ((y.float() - expected).abs() <= bound + 1e-5).all()


@pytest.mark.parametrize("down_budget", [4, 24, 70])
def test_down_has_a_budget_of_its_own(isa: str, down_budget: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 96)
    args = weights, scales, biases, _ = layers((130, 96), (130, 96), (70, 130))
    for rule in (BUDGET, OutlierRule("budget", 2.0, 12, True, False)):
        y = ops.gated_mlp(x, *args, "silu", down_budget, rule)
        gate, up = ops.int8_linears(x, weights[:2], scales[:2], biases[:2], [None] * 2, rule)
        hidden = torch.nn.functional.silu(gate) * up
        down = (hidden, weights[2], scales[2], biases[2], None)
        expected = ops.int8_linear(*down, rule._replace(budget=down_budget))
        error = (y - expected).norm() / expected.norm()
        other = ops.int8_linear(*down, rule._replace(budget=1))
        assert error < 1e-3 < (other - expected).norm() / expected.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact_to_fp32(isa: str, activation: str) -> None:
    """One feature, so that the MLP shows its activation: gate(x) = x, up(x) = 1, down(h) = h."""
    x = torch.cat([torch.linspace(-60, 60, 2001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0])])[:, None]
    x = torch.cat([x, torch.ones_like(x)], 1)
    one = torch.tensor([[127, 0]], dtype=torch.int8), torch.tensor([[0, 127]], dtype=torch.int8)
    weights = [*one, torch.full((1, 1), 127, dtype=torch.int8)]
    scales = [torch.full((1, 1), 1 / 127)] * 3
    rule = OutlierRule("none", 0.0, 0, False, False)
    rest = (weights, scales, [None] * 3, [None] * 3, activation, 0, rule)
    y = torch.cat([ops.gated_mlp(row[None], *rest) for row in x])
    gate = x[:, :1].double()
    f = torch.nn.functional
    exact = f.silu(gate) if activation == "silu" else f.gelu(gate, approximate="tanh")
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_bad_row_spoils_no_other(isa: str) -> None:
    torch.manual_seed(0)
    for m in (4, 20):
        x = torch.randn(m, 96)
        args = layers((130, 96), (130, 96), (70, 130))
        rule = OutlierRule("none", 0.0, 0, False, False)
        clean = ops.gated_mlp(x, *args, "silu", 0, rule)
        x[1, 5] = float("nan")
        y = ops.gated_mlp(x, *args, "silu", 0, rule)
        assert not y[1].isfinite().any()
        others = torch.arange(m) != 1
        assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("add_one", [False, True])
def test_rms_norm(isa: str, dtype: torch.dtype, add_one: bool) -> None:
    torch.manual_seed(0)
    for shape in [(1, 1), (1, 1, 576), (3, 5, 33), (700, 129)]:
        x, weight = (5 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
        for view in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
            y = ops.rms_norm(view, weight, 1e-6, add_one)
            wide = x.double()
            exact = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (weight.double() + add_one)
            assert y.dtype == dtype
            one_rounding(y, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_rotate(isa: str, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    for batch in (1, 2):
        q, k = (torch.randn(2, rows, heads, 34).to(dtype).transpose(1, 2) for heads in (5, 2))
        angles = torch.randn(batch, rows, 17).repeat(1, 1, 2)
        cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
        expected = [t.double().clone() for t in (q, k)]
        ops.rotate(q, k, cosine, sine)
        for y, x in zip((q, k), expected, strict=True):
            c, s = cosine.double()[:, None], sine.double()[:, None]
            exact = x * c + torch.cat([-x[..., 17:], x[..., :17]], -1) * s
            size = x.abs() * c.abs() + torch.cat([x[..., 17:], x[..., :17]], -1).abs() * s.abs()
            assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-6 * size).all()


def decoder_inputs(dtype: torch.dtype, batch: int = 2, head_norms: bool = False) -> list:
    torch.manual_seed(0)
    features, depth, heads, key_heads, hidden = 48, 16, 4, 2, 80
    weights, scales, biases, _ = layers(
        (heads * depth, features),
        (key_heads * depth, features),
        (key_heads * depth, features),
        (features, heads * depth),
        (hidden, features),
        (hidden, features),
        (features, hidden),
        dtype=dtype,
    )
    angles = torch.randn(1, 1, depth // 2).repeat(1, 1, 2)
    cache = [torch.randn(batch, key_heads, 20, depth).to(dtype) for _ in range(2)]
    norms = [1 + 0.1 * torch.randn(features).to(dtype) for _ in range(2)]
    of_heads = [1 + 0.1 * torch.randn(depth).to(dtype) for _ in range(2)] if head_norms else []
    x = torch.randn(batch, 1, features).to(dtype)
    angles = [angles.cos().to(dtype), angles.sin().to(dtype)]
    return [x, *angles, *cache, 9, norms, of_heads, 1e-6, False, weights, scales, biases, 0.25, "silu"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_norms", [False, True])
def test_a_decoder_layer_is_its_operators(isa: str, dtype: torch.dtype, head_norms: bool) -> None:
    args = decoder_inputs(dtype, head_norms=head_norms)
    copy = [args[3].clone(), args[4].clone()]
    y = ops.decoder_layer(*args)
    expected = torch.ops.llmint8.decoder_layer_fallback(*args[:3], *copy, *args[5:])
    assert torch.equal(y, expected)
    assert torch.equal(args[3], copy[0])
    assert torch.equal(args[4], copy[1])


def test_a_decoder_layer_without_room_is_refused() -> None:
    args = decoder_inputs(torch.float32)
    args[5] = 20
    with pytest.raises(ValueError, match="room"):
        ops.decoder_layer(*args)


def test_the_next_token_is_the_same_on_any_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.decoder_layer(*decoder_inputs(torch.bfloat16)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_heads_of_another_batch_are_not_written_beyond() -> None:
    q, buffer = torch.randn(2, 1, 3, 8), torch.randn(2, 1, 3, 8)
    kept = buffer.clone()
    angles = torch.randn(1, 3, 8)
    ops.rotate(q, buffer[:1], angles, angles)
    assert torch.equal(buffer[1], kept[1])
    assert not torch.equal(buffer[0], kept[0])


def test_missing_scales_are_refused() -> None:
    weights, scales, biases, columns = layers((130, 96), (130, 96), (70, 130))
    with pytest.raises(ValueError, match="zip"):
        ops.gated_mlp(torch.randn(1, 96), weights, scales[:1], biases, columns, "silu", 4, BUDGET)
