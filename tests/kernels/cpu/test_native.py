"""The native kernels, every instruction set that this processor has, against the reference."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kernel_contract import DTYPES, ROWS, RULES, SIZES, U, check, make_columns, make_input, make_weight
from llmint8 import functional, ops
from llmint8.kernels.cpu import native
from llmint8.kernels.cpu.limits import DECODE_ROWS, FEW_OUTLIERS
from llmint8.kernels.reference import int8_linear as reference
from llmint8.outliers import OutlierRule

if not native.load():
    pytest.skip("there is no compiler for the native kernels", allow_module_level=True)


@pytest.fixture(params=native.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(native.instruction_sets()[0])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", ROWS)
def test_same_as_the_reference(isa: str, m: int, dtype: torch.dtype, rule: OutlierRule) -> None:
    generator = torch.Generator().manual_seed(m)
    for k, n in SIZES:
        x, (weight, scale) = make_input(m, k, dtype, generator), make_weight(n, k, generator)
        bias, columns = torch.randn(n, generator=generator).to(dtype), make_columns(rule, k, generator)
        digits = dtype != torch.float32 and (m <= DECODE_ROWS or k > FEW_OUTLIERS)
        for b in (bias, bias.float(), None):
            y = ops.int8_linear(x, weight, scale, b, columns, rule)
            check(y, reference.int8_linear(x, weight, scale, b, columns, rule), x, weight, scale, b, digits)


@pytest.mark.parametrize("k", [64, 4096, 65536])
@pytest.mark.parametrize("m", [1, 3, 16, 40])
def test_the_largest_products_do_not_saturate_or_overflow(isa: str, m: int, k: int) -> None:
    """All codes +-127: of 16-bit sums of two products of bytes, as AVX2 has them, every one would saturate."""
    signs = torch.tensor([1.0, -1.0])[torch.randint(0, 2, (5, k), generator=torch.Generator().manual_seed(0))]
    weight = torch.cat([torch.full((2, k), 127.0), -torch.full((1, k), 127.0), 127 * signs]).to(torch.int8)
    scale = torch.full((8, 1), 1 / 127)
    for x in (torch.ones(m, k), -torch.ones(m, k), signs[:1].expand(m, k)):
        for symmetric in (True, False):
            rule = OutlierRule("none", symmetric=symmetric)
            y = ops.int8_linear(x, weight, scale, rule=rule)
            expected = reference.int8_linear(x, weight, scale, None, None, rule)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * k)
            exact = x.double() @ weight.double().T / 127  # +-1 is half a step off where both are in a row
            torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=0.004 * k)


def test_beyond_what_int32_holds_the_reference_runs(isa: str) -> None:
    x, weight = torch.ones(1, 70_000), torch.full((2, 70_000), 127, dtype=torch.int8)
    y = ops.int8_linear(x, weight, torch.ones(2, 1))
    assert torch.equal(y, torch.full((1, 2), 127.0 * 70_000))


@pytest.mark.parametrize("m", [4, 20])
def test_a_bad_row_spoils_no_other(isa: str, m: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(m, 100)
    weight, scale = functional.quantize_rowwise(torch.randn(70, 100))
    rule = OutlierRule("budget", budget=4)
    for bad in (float("nan"), float("inf"), -float("inf")):
        spoilt = x.clone()
        spoilt[1, 7] = bad
        clean = x.clone()
        clean[1, 7] = 0
        y = ops.int8_linear(spoilt, weight, scale, None, None, rule)
        assert not y[1].isfinite().any()
        others = torch.arange(m) != 1
        assert torch.equal(y[others], ops.int8_linear(clean, weight, scale, None, None, rule)[others])


def test_decode_is_the_same_in_any_batch_on_any_threads_with_any_instructions() -> None:
    torch.manual_seed(0)
    x = torch.randn(DECODE_ROWS, 1100).bfloat16()
    x[3, 5] = 1000  # a row that needs 24 bits beside those that need 16
    weight, scale = functional.quantize_rowwise(torch.randn(700, 1100))
    expected = ops.int8_linear(x, weight, scale)
    threads = torch.get_num_threads()
    try:
        for name in native.instruction_sets():
            native.use_instruction_set(name)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(ops.int8_linear(x, weight, scale), expected), name
                assert torch.equal(torch.cat([ops.int8_linear(row[None], weight, scale) for row in x]), expected)
    finally:
        torch.set_num_threads(threads)
        native.use_instruction_set(native.instruction_sets()[0])


def test_prefill_is_the_same_on_any_threads(isa: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2500, 96)
    weight, scale = functional.quantize_rowwise(torch.randn(200, 96))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.int8_linear(x, weight, scale))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_views_are_read_right(isa: str) -> None:
    weight, scale = functional.quantize_rowwise(torch.randn(40, 64))
    rule = RULES["budget"]
    for m in (1, 5, 40):
        x = torch.randn(32, m).T
        for view in (weight[:, ::2], weight[:, 16:48], weight[:32].T[:32].T[:, :32]):
            s = scale[: len(view)]
            expected = reference.int8_linear(x, view, s, None, None, rule)
            for same in (x, torch.cat([x, x], 1)[:, 32:], x.T.contiguous().T):
                y = ops.int8_linear(same, view, s, None, None, rule)
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_get_the_codes_of_the_reference(isa: str, dtype: torch.dtype) -> None:
    for n, k in [(1, 1), (7, 31), (130, 576), (3, 5000)]:
        weight = torch.randn(n, k).to(dtype)
        weight[n // 2] = 0
        codes, scale = ops.quantize_weight(weight)
        expected, expected_scale = functional.quantize_rowwise(weight)
        assert torch.equal(scale, expected_scale)
        assert torch.equal(codes, expected)
        assert codes.is_contiguous()


def test_memory_of_weights_outlives_its_neighbours() -> None:
    """Weights share a range of huge pages; each must stay when others go."""
    torch.manual_seed(0)
    weights = [torch.randn(200, 300) for _ in range(20)]
    codes = [ops.quantize_weight(weight)[0] for weight in weights]
    del codes[::2]
    for kept, weight in zip(codes, weights[1::2], strict=True):
        assert torch.equal(kept, functional.quantize_rowwise(weight)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "key_heads", "depth", "queries", "keys", "causal"),
    [
        (4, 4, 64, 1, 300, False),
        (6, 2, 24, 1, 1, False),
        (9, 3, 80, 3, 77, False),
        (8, 1, 128, 70, 70, True),
        (3, 3, 33, 150, 150, True),
        (4, 2, 64, 65, 200, False),
        (2, 2, 16, 3, 3, True),
        (6, 2, 64, 70, 333, True),
        (2, 1, 16, 2, 9, True),
        (3, 3, 24, 1, 40, True),
    ],
)
def test_attention(
    isa: str, dtype: torch.dtype, heads: int, key_heads: int, depth: int, queries: int, keys: int, causal: bool
) -> None:
    torch.manual_seed(0)
    q = (3 * torch.randn(2, queries, heads, depth)).to(dtype).transpose(1, 2)
    k, v = (torch.randn(2, key_heads, keys, depth).to(dtype) for _ in range(2))
    y = ops.attention(q, k, v, 0.3, causal)
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), ops.causal_mask(q, keys) if causal else None, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert y.dtype == dtype
    assert y.is_contiguous()
    # Weights of probability sum to 1, so errors are of the size of a value: fp32 sums, and one rounding.
    error = (y.double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps * exact.abs() + 2e-5).all()


def test_a_text_read_in_pieces_has_the_same_bits(isa: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 32).bfloat16() for _ in range(3))
    whole = ops.attention(q, k, v, 0.3, True)
    for first, last in ((0, 70), (70, 72), (72, 200)):  # of one query alone, the sums have another order
        piece = ops.attention(q[:, :, first:last], k[:, :, :last], v[:, :, :last], 0.3, True)
        assert torch.equal(piece, whole[:, first:last])


def test_what_attention_does_not_take_pytorch_computes(isa: str) -> None:
    q, k = torch.randn(1, 2, 5, 16).transpose(2, 3), torch.randn(1, 2, 5, 16).transpose(2, 3)  # not contiguous
    expected = F.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.3).transpose(1, 2)
    assert torch.equal(ops.attention(q, k, k, 0.3, True), expected)


def test_attention_over_one_key_returns_every_16_bit_number(isa: str) -> None:
    """So the conversions of all numbers are right, subnormal ones and infinities included."""
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        v = values.view(1, 1, 1, -1)
        k = torch.zeros_like(v)
        y = ops.attention(k, k, v, 1.0)[0, 0, 0]
        finite = values.isfinite()
        assert torch.equal(y[finite], values[finite])
        assert torch.equal(y[~finite].nan_to_num(1.0), values[~finite].nan_to_num(1.0))


def test_attention_of_a_bad_query_spoils_no_other(isa: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    expected = ops.attention(q, k, v, 0.25, True)
    q[0, 1, 7, 3] = float("nan")
    y = ops.attention(q, k, v, 0.25, True)
    assert y[0, 7, 1].isnan().all()
    y[0, 7, 1] = expected[0, 7, 1]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float_linear(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for n, k in [(1, 1), (70, 33), (129, 576), (5000, 64)]:
        for rows in (1, 3):
            weight, bias, x = torch.randn(n, k).to(dtype), torch.randn(n).to(dtype), torch.randn(rows, k).to(dtype)
            for b in (bias, None):
                y = ops.float_linear(x, weight, b)
                exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
                size = x.double().abs() @ weight.double().abs().T + bias.double().abs()
                error = (y.double() - exact).abs()
                assert y.dtype == dtype
                assert (error <= (k + 8) * U * size + torch.finfo(dtype).eps * exact.abs()).all()


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction set sse9"):
        native.use_instruction_set("sse9")
