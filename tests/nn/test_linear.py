"""`Int8Linear` against the formula in fp64, and as a citizen of PyTorch."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from llmint8 import Int8Config, Int8Linear, functional
from llmint8.kernels.cpu.limits import DECODE_ROWS

STATIC = Int8Config(mode="static", budget=5)
CONFIGS = [
    STATIC,
    Int8Config(),
    Int8Config(budget=3, symmetric=True, relative=False),
    Int8Config(threshold=2.0),
    Int8Config(threshold=4.0, relative=True, symmetric=True),
    Int8Config(mode="none"),
]
U = 2.0**-24


def bound(layer: Int8Linear, x: Tensor) -> Tensor:
    """How far the layer may be from `x . (s_w q_w) + bias` in real numbers; derived, not tuned.

    With `a[m, n] = sum_k |x[m, k]| |w[n, k]|` over `w = s_w q_w`, `u = 2**-24` and `r` the roundoff of the dtype:

    1. Quantization. A code is off by at most half a step (and `256 u`, see test_functional), so the int8 part is off
       by `s_x (1/2 + 256 u) sum_{k not in O} |w[n, k]|`. In the decode regime nothing is quantized: this term is 0.
    2. fp32 arithmetic. Any order of summing K products errs by at most `K u a`. The int8 sum is exact, and
       turning it into fp32, two scales and the zero point correction cost `u` each, of a value of at most
       `a + s_x (1/2) sum |w|`; a fixed-point row (decode on a CPU) is within `u max_k |x|`, so within
       `u max_k |x| sum_k |w|`, or, for an input of 16 bits, within half a step of 16 bits, `max_k |x| / (127 * 256)`;
       so are many outlier columns on a CPU.
       Adding the bias costs `u (|y| + |bias|)`. Together: below
       `(K + 8) u (a + max_k |x| sum_k |w| + |bias|)`.
    3. One rounding of the result: `r |y|`, and half the smallest subnormal of the dtype where `y` is that small.
    """
    weight = layer.dequantized_weight().double()
    config, dtype = layer.int8_config, x.dtype
    x = x.double()
    size = x.abs() @ weight.abs().T
    total = weight.abs().sum(1)
    step = torch.zeros(x.shape[0], 1, dtype=torch.double)
    kept, outliers = total, None
    if x.shape[0] > DECODE_ROWS:
        outliers = functional.select_outliers(x.float(), layer.outlier_columns, layer.outlier_rule)
        if outliers is not None:
            kept = weight.masked_fill(outliers, 0).abs().sum(1)
        quantize = functional.quantize_rowwise if config.symmetric else functional.quantize_zeropoint
        step = quantize(x.float(), outliers)[1].double()
    largest = x.abs().amax(1, keepdim=True)
    bias = 0 if layer.bias is None else layer.bias.detach().double().abs()
    quantization = step * (0.5 + 256 * U) * kept
    arithmetic = (x.shape[1] + 8) * U * (size + largest * total + bias)
    if dtype != torch.float32 and (x.shape[0] <= DECODE_ROWS or (outliers is not None and outliers.sum() > 32)):
        arithmetic += largest / (127 * 256) / 2 * total
    return quantization + arithmetic


def rounding(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Term 3 of `bound`."""
    info = torch.finfo(dtype)
    return y.abs() * (info.eps / 2) + info.smallest_normal * info.eps


@st.composite
def cases(draw: st.DrawFn) -> tuple[Int8Linear, Tensor]:
    """A layer and an input of any rank, stride and dtype, with zero rows and large columns."""
    k, n = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    linear = nn.Linear(k, n, bias=draw(st.booleans()))
    with torch.no_grad():
        linear.weight.copy_(torch.randn(n, k, generator=generator))
        linear.weight[torch.rand(n, generator=generator) < 0.1] = 0
        if linear.bias is not None:
            linear.bias.copy_(torch.randn(n, generator=generator) * 10)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    config = draw(st.sampled_from(CONFIGS))
    layer = Int8Linear.from_float(linear.to(dtype), None if config is STATIC else config)
    if config is STATIC:
        layer.int8_config = config
        layer.set_outlier_columns(torch.randperm(k, generator=generator)[:5])
    lead = draw(st.lists(st.integers(1, 7), max_size=3)) or draw(st.sampled_from([[], [1], [16], [17], [60]]))
    x = torch.randn(*lead, k, 2, generator=generator)
    x *= torch.where(torch.rand(k, 1, generator=generator) < 0.05, 20.0, 1.0)
    x *= torch.rand(*lead, 1, 1, generator=generator) > draw(st.sampled_from([0.0, 0.3]))
    x = x.to(dtype)
    # A view with a stride of 2, a transposed view, or a plain tensor.
    view = draw(st.sampled_from(["strided", "transposed", "plain"]))
    if view == "strided":
        return layer, x[..., 0]
    x = x[..., 0].contiguous()
    return layer, (x.transpose(0, -1).contiguous().transpose(0, -1) if view == "transposed" else x)


@given(cases())
def test_the_layer_is_the_formula_within_its_bound(case: tuple[Int8Linear, Tensor]) -> None:
    layer, x = case
    y = layer(x)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], layer.out_features)
    assert y.is_contiguous()
    rows = x.reshape(-1, x.shape[-1])
    exact = rows.double() @ layer.dequantized_weight().double().T
    if layer.bias is not None:
        exact += layer.bias.double()
    allowed = bound(layer, rows)
    allowed += rounding(exact.abs() + allowed, x.dtype)
    worst = ((y.reshape(exact.shape).double() - exact).abs() / allowed).max()
    assert worst <= 1, f"error is {worst:.3f} of the bound"


@given(cases(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_a_bad_row_is_not_finite_and_spoils_no_other(
    case: tuple[Int8Linear, Tensor], bad: float, data: st.DataObject
) -> None:
    """The other rows are as if the bad value were 0 (its whole row, for relative scores): it chooses no outliers."""
    layer, x = case
    rows = x.reshape(-1, x.shape[-1]).clone()
    row, column = data.draw(st.integers(0, rows.shape[0] - 1)), data.draw(st.integers(0, rows.shape[1] - 1))
    rows[row, column] = bad
    y = layer(rows)
    assert not y[row].isfinite().any()  # nor is it for nn.Linear: NaN * 0 and Inf * 0 are NaN
    clean = rows.clone()
    clean[row, slice(None) if layer.int8_config.relative else column] = 0
    others = torch.arange(len(rows)) != row
    assert torch.equal(y[others], layer(clean)[others])


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_weights_are_within_half_a_step(k: int, n: int, dtype: torch.dtype) -> None:
    linear = nn.Linear(k, n).to(dtype)
    layer = Int8Linear.from_float(linear)
    error = (layer.dequantized_weight().double() - linear.weight.double()).abs()
    assert (error <= layer.weight_scale.double() * (0.5 + 256 * U)).all()


@pytest.mark.parametrize("shape", [(0, 30), (2, 0, 30), (0,)], ids=str)
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    layer = Int8Linear.from_float(nn.Linear(shape[-1] or 30, 7))
    if shape == (0,):
        layer = Int8Linear(0, 7)
        assert torch.equal(layer(torch.empty(4, 0)), layer.bias.expand(4, 7))
        return
    assert layer(torch.empty(shape)).shape == (*shape[:-1], 7)


def test_more_rows_than_a_block() -> None:
    torch.manual_seed(0)
    layer = Int8Linear.from_float(nn.Linear(16, 4))
    x = torch.randn(5000, 16)
    exact = x.double() @ layer.dequantized_weight().double().T + layer.bias.double()
    allowed = bound(layer, x)
    assert ((layer(x).double() - exact).abs() <= allowed + rounding(exact.abs() + allowed, x.dtype)).all()


@pytest.fixture
def layer() -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_float(nn.Linear(40, 24), Int8Config(budget=4))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(30, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.float(),
        lambda m: m.type(torch.float16),
        lambda m: m.cpu(),
    ],
    ids=["to-fp16", "to-cpu-bf16", "half", "double", "float", "type", "cpu"],
)
def test_moves_and_casts_leave_codes_and_scales_alone(layer: Int8Linear, move: Any) -> None:
    moved = move(nn.Sequential(copy.deepcopy(layer)))[0]
    assert moved.weight.dtype == torch.int8
    assert moved.weight_scale.dtype == torch.float32
    assert torch.equal(moved.weight, layer.weight)
    assert torch.equal(moved.weight_scale, layer.weight_scale)
    assert not moved.weight.requires_grad


def test_copies_are_equal_and_independent(layer: Int8Linear, x: Tensor) -> None:
    y = layer(x)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(clone(x), y)
        assert clone.int8_config == layer.int8_config
        with torch.no_grad():
            clone.weight_scale.mul_(2)
    assert torch.equal(layer(x), y)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_dict_round_trip(layer: Int8Linear, x: Tensor, assign: bool, device: str) -> None:
    if device == "meta" and not assign:
        other = Int8Linear(40, 24, device="meta", config=layer.int8_config).to_empty(device="cpu")
    else:
        other = Int8Linear(40, 24, device=device, config=layer.int8_config)
    state = layer.state_dict()
    assert set(state) == {"weight", "weight_scale", "bias"}
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(x), layer(x))


def test_meta_device(layer: Int8Linear) -> None:
    meta = copy.deepcopy(layer).to("meta")
    assert meta.weight.is_meta
    assert meta.weight_scale.is_meta
    y = meta(torch.empty(2, 5, 40, device="meta", dtype=torch.bfloat16))
    assert y.shape == (2, 5, 24)
    assert y.is_meta
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(24, 40)}, "weight must be int8, got torch.float32"),
        ({"weight_scale": None}, "has no weight_scale"),
        ({"weight_scale": torch.ones(24, 1).half()}, "must be float32, got torch.float16"),
        ({"weight_scale": torch.ones(24)}, "size mismatch for weight_scale"),
        ({"weight_scale": torch.ones(23, 1)}, "size mismatch for weight_scale"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_that_would_give_garbage_is_refused(
    layer: Int8Linear, change: dict[str, Any], message: str, strict: bool
) -> None:
    state = {k: v for k, v in (layer.state_dict() | change).items() if v is not None}
    with pytest.raises(RuntimeError, match=message):
        Int8Linear(40, 24).load_state_dict(state, strict=strict)


def test_random_initialization_is_refused(layer: Int8Linear) -> None:
    with pytest.raises(RuntimeError, match="cannot be initialized at random"):
        layer.reset_parameters()


def test_autocast_casts_as_for_a_float_layer(layer: Int8Linear, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16()))
    assert layer.weight_scale.dtype == torch.float32


def test_gradients_reach_what_comes_before(layer: Int8Linear, x: Tensor) -> None:
    before = nn.Linear(40, 40)
    model = nn.Sequential(before, layer)
    model(x).square().mean().backward()
    assert before.weight.grad.abs().sum() > 0
    assert layer.weight.grad is None
    assert layer.weight_scale.grad is None


def test_a_replica_whose_tensors_are_attributes(layer: Int8Linear, x: Tensor) -> None:
    """As `nn.DataParallel` makes them."""
    replica = layer._replicate_for_data_parallel()
    for name in ("weight", "weight_scale", "bias", "column_scale", "outlier_columns"):
        setattr(replica, name, getattr(layer, name) if getattr(layer, name) is None else getattr(layer, name).data)
    assert torch.equal(replica(x), layer(x))


def test_to_float_is_the_dequantized_layer(layer: Int8Linear, x: Tensor) -> None:
    linear = layer.to_float()
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, layer.dequantized_weight())
    # Codes do not change when a weight that they represent exactly is quantized again.
    again = Int8Linear.from_float(linear)
    assert torch.equal(again.weight, layer.weight)
    assert layer.to_float(torch.float16).weight.dtype == torch.float16


def test_static_columns_are_part_of_the_state(layer: Int8Linear, x: Tensor) -> None:
    x[:, 7] *= 30
    layer.int8_config = Int8Config(mode="static", budget=1)
    with pytest.raises(ValueError, match="llmint8.calibrate"):
        layer(x)
    layer.set_outlier_columns(torch.tensor([7]))
    expected = layer(x)
    other = Int8Linear(40, 24, config=layer.int8_config)
    other.load_state_dict(layer.state_dict())
    assert other.outlier_columns.tolist() == [7]
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(layer).half().float()(x), copy.deepcopy(layer).half().float()(x))
    assert copy.deepcopy(layer).half().outlier_columns.dtype == torch.int64
    layer.set_outlier_columns(None)
    assert "outlier_columns" not in layer.state_dict()
    with pytest.raises(ValueError, match="llmint8.calibrate"):
        Int8Linear.from_float(nn.Linear(4, 4), Int8Config(mode="static"))


def test_a_static_row_does_not_depend_on_its_batch(layer: Int8Linear, x: Tensor) -> None:
    layer.int8_config = Int8Config(mode="static", budget=3)
    layer.set_outlier_columns(torch.tensor([1, 5, 30]))
    alone = layer(x)
    neighbours = torch.cat([x, 100 * torch.randn(30, 40)])
    assert torch.equal(layer(neighbours)[:30], alone)


def test_settings_may_change_at_any_time(layer: Int8Linear, x: Tensor) -> None:
    y = layer(x)
    layer.int8_config = Int8Config(mode="none", symmetric=True)
    assert not torch.equal(layer(x), y)
    assert "outliers=none" in repr(layer)
    layer.int8_config = Int8Config(threshold=6.0)
    assert "outliers=threshold 6" in repr(layer)


@pytest.fixture
def scaled() -> tuple[nn.Linear, Int8Linear]:
    """A layer whose weight has two columns that int8 would lose, and its int8 form."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    with torch.no_grad():
        linear.weight[:, [3, 40]] /= 50
    return linear, Int8Linear.from_float(linear, Int8Config(budget=4))


def test_small_columns_keep_their_accuracy(scaled: tuple[nn.Linear, Int8Linear]) -> None:
    linear, layer = scaled
    x = torch.randn(30, 64)
    x[:, [3, 40]] *= 50
    expected = linear(x)
    plain = Int8Linear.from_float(linear, Int8Config(budget=4, checkpoint_format="bitsandbytes"))
    assert plain.column_scale is None
    for rows in (30, 3):
        error, without = ((made(x[:rows]) - expected[:rows]).norm() for made in (layer, plain))
        assert error * 4 < without
    back = layer.to_float()
    assert ((back.weight - linear.weight).norm(dim=0) < 0.02 * linear.weight.norm(dim=0)).all()
    torch.testing.assert_close(layer(x[:3]), back(x[:3]))
    inputs = x.clone().requires_grad_()
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, back.weight.sum(0).expand_as(x))


def test_the_column_scale_is_kept(scaled: tuple[nn.Linear, Int8Linear]) -> None:
    _, layer = scaled
    x = torch.randn(30, 64)
    expected = layer(x)
    assert layer.column_scale is not None
    fresh = Int8Linear(64, 48, config=Int8Config(budget=4))
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    half = copy.deepcopy(layer).half()
    assert half.column_scale.dtype == torch.float32
    assert half(x.half()).dtype == torch.float16
    fresh.load_state_dict(Int8Linear.from_float(nn.Linear(64, 48)).state_dict())
    assert fresh.column_scale is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [3, 50])
def test_a_row_does_not_depend_on_its_neighbours_without_a_search(columns: int, dtype: torch.dtype) -> None:
    """In the modes static and none, and in decode, bit for bit; a search looks at all rows."""
    generator = torch.Generator().manual_seed(columns)
    layer = Int8Linear.from_float(nn.Linear(300, 70, dtype=dtype))
    layer.set_outlier_columns(torch.randperm(300, generator=generator)[:columns])
    x = torch.randn(40, 300, generator=generator).to(dtype)
    others = [torch.randn(count, 300, generator=generator) for count in (40, 200, 3)]
    others[1][:, 5] *= 300  # a row that needs more digits than the rest
    others[1][:, layer.outlier_columns[0]] *= 3000

    def depends(config: Int8Config, rows: int) -> bool:
        layer.int8_config = config
        alone = layer(x[:rows])
        batches = [torch.cat([x[:rows], other.to(dtype)]) for other in others if (rows > 8) or len(other) + rows <= 8]
        return not all(torch.equal(layer(batch)[:rows], alone) for batch in batches)

    for config in (Int8Config(mode="static"), Int8Config(mode="static", symmetric=True), Int8Config(mode="none")):
        assert not depends(config, 40)
    assert not any(depends(config, 4) for config in (Int8Config(), Int8Config(threshold=6.0)))
    assert depends(Int8Config(), 40)
    assert depends(Int8Config(threshold=6.0), 40)
