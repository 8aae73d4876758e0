from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmint8 import Int8Config, Int8Linear, functional, ops
from llmint8.outliers import OutlierRule

RULES: dict[str, OutlierRule] = {
    "budget": OutlierRule("budget", 0.0, 4, True, False),
    "threshold": OutlierRule("threshold", 2.0, 0, False, True),
    "none": OutlierRule("none", 0.0, 0, False, False),
}
COLUMNS = torch.tensor([2, 5, 40])
ROWS = {"decode": 3, "prefill": 40}


def tensors(rows: int, dtype: torch.dtype = torch.float32, k: int = 48, n: int = 24) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(rows, k)
    x[:, 5] *= 20
    return (x.to(dtype), *ops.quantize_weight(torch.randn(n, k)), torch.randn(n).to(dtype))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", ops.INPUT_DTYPES, ids=str)
def test_opcheck_int8_linear(rows: int, dtype: torch.dtype, rule: OutlierRule) -> None:
    x, weight, scale, bias = tensors(rows, dtype)
    for name in ("int8_linear", "int8_linear_fallback", "int8_linear_with_gradient"):
        op = getattr(torch.ops.llmint8, name)
        torch.library.opcheck(op, (x.requires_grad_(), weight, scale, bias.requires_grad_(), None, *rule))
        torch.library.opcheck(op, (x.detach()[:, None], weight, scale, None, None, *rule))


def test_opcheck_the_other_operators() -> None:
    x, weight, scale, bias = tensors(20)
    static = OutlierRule("static", 0.0, 3, False, False)
    torch.library.opcheck(torch.ops.llmint8.int8_linear, (x, weight, scale, bias, COLUMNS, *static))
    torch.library.opcheck(torch.ops.llmint8.int8_linear_grad_input, (torch.randn(2, 5, 24), weight, scale))
    torch.library.opcheck(torch.ops.llmint8.quantize_weight, (x,))
    torch.library.opcheck(torch.ops.llmint8.quantize_weight_fallback, (x,))
    torch.library.opcheck(torch.ops.llmint8.dequantize_weight, (weight, scale, torch.bfloat16))
    torch.library.opcheck(torch.ops.llmint8.dequantize_weight_fallback, (weight, scale, torch.bfloat16))
    torch.library.opcheck(torch.ops.llmint8.int8_linear_grad_input_fallback, (torch.randn(2, 5, 24), weight, scale))


@pytest.mark.parametrize("suffix", ["", "_fallback"])
@pytest.mark.parametrize("dtype", ops.INPUT_DTYPES, ids=str)
def test_opcheck_what_stays_float(suffix: str, dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 4, 5, 8).to(dtype), torch.randn(2, 2, 5, 8).to(dtype)
    for causal in (True, False):
        for queries in (query, query[:, :, -3:]):
            torch.library.opcheck(getattr(torch.ops.llmint8, f"attention{suffix}"), (queries, key, key, 0.3, causal))
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((1, 1, 48), (24, 48), (24,)))
    for b in (bias, None):
        torch.library.opcheck(getattr(torch.ops.llmint8, f"float_linear{suffix}"), (x, weight, b))


def test_every_operator_is_checked_above() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("llmint8::")}
    names = {name for name in names if not name.startswith("toy_")}  # test_registry.py adds some
    fused = {"int8_linears", "gated_mlp", "rms_norm", "rotate", "decoder_layer"}  # in test_model.py
    linear = {"int8_linear", "int8_linear_grad_input", "quantize_weight", "dequantize_weight"}
    operators = {*linear, "attention", "float_linear", *fused}
    fallbacks = {f"{name}_fallback" for name in operators}
    assert names == {*operators, *fallbacks, "int8_linear_with_gradient"}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gradients_go_through_the_dequantized_weight(rows: int) -> None:
    x, weight, scale, bias = tensors(rows)
    grad = torch.randn(rows, 24)
    x.requires_grad_()
    bias.requires_grad_()
    ops.int8_linear(x, weight, scale, bias).backward(grad)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, grad @ functional.dequantize(weight, scale))
    torch.testing.assert_close(bias.grad, grad.sum(0))


def test_inputs_are_not_changed() -> None:
    inputs = tensors(40)
    before = [t.clone() for t in inputs]
    ops.int8_linear(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 47)}, ValueError, r"\[\.\.\., 48\].*got \[2, 47\]"),
        ({"x": torch.tensor(1.0)}, ValueError, r"got \[\]"),
        ({"x": torch.ones(2, 48, dtype=torch.float64)}, TypeError, "got torch.float64"),
        ({"x": torch.ones(2, 48, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"weight": torch.ones(24, 48)}, TypeError, "weight must be int8"),
        ({"weight_scale": torch.ones(24)}, ValueError, r"weight_scale \[N, 1\]"),
        ({"weight_scale": torch.ones(24, 1).half()}, TypeError, "float16"),
        ({"bias": torch.ones(23)}, ValueError, r"bias must be \[24\], got \[23\]"),
        ({"x": torch.ones(17, 48), "rule": OutlierRule("median")}, ValueError, "'median'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = dict(zip(("x", "weight", "weight_scale", "bias"), tensors(2), strict=True)) | change
    with pytest.raises(error, match=message):
        ops.int8_linear(**arguments)


def test_tensors_on_two_devices_are_refused() -> None:
    x, weight, scale, bias = tensors(2)
    for change in ({"x": x.to("meta")}, {"weight": weight.to("meta")}, {"bias": bias.to("meta")}):
        arguments = {"x": x, "weight": weight, "weight_scale": scale, "bias": bias} | change
        with pytest.raises(RuntimeError, match="on one device, got"):
            ops.int8_linear(**arguments)
    with pytest.raises(RuntimeError, match="on one device, got"):
        ops.float_linear(x[:1], torch.empty(24, 48, device="meta"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_with_nan_or_inf_has_no_int8_form(bad: float) -> None:
    weight = torch.ones(6, 4)
    weight[3, 1] = bad
    with pytest.raises(ValueError, match=r"the weight \[6, 4\] has a NaN or Inf"):
        ops.quantize_weight(weight)
    with pytest.raises(TypeError, match="got torch.int8"):
        ops.quantize_weight(torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"got \[2\]"):
        ops.quantize_weight(torch.ones(2))


def test_a_large_weight_is_quantized_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 33).bfloat16()
    whole = ops.quantize_weight(weight)
    restored = ops.dequantize_weight(*whole)
    monkeypatch.setattr(functional, "_BLOCK_ELEMENTS", 100)
    assert len(functional.row_blocks(weight)) == 17
    for a, b in zip(whole, ops.quantize_weight(weight), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(restored, ops.dequantize_weight(*whole))


@pytest.mark.parametrize("name", RULES)
def test_compile_makes_one_graph_with_the_same_result(name: str) -> None:
    mode, threshold, budget, relative, symmetric = RULES[name]
    torch.manual_seed(0)
    config = Int8Config(
        mode=mode,
        threshold=threshold if budget else threshold or None,
        budget=budget or None,
        relative=relative,
        symmetric=symmetric,
    )
    layers = [Int8Linear.from_float(nn.Linear(32, 32), config) for _ in range(2)]
    model = nn.Sequential(layers[0], nn.GELU(), layers[1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (1, 3, 40):
        x = torch.randn(rows, 32)
        assert torch.equal(compiled(x), model(x))
    assert torch._dynamo.explain(model)(torch.randn(40, 32)).graph_break_count == 0
    x = torch.randn(40, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(grad, expected)


def test_export_of_a_layer() -> None:
    layer = Int8Linear.from_float(nn.Linear(32, 16))
    rows = torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(layer, (torch.randn(20, 32),), dynamic_shapes=({0: rows},))
    for count in (2, 20, 100):
        x = torch.randn(count, 32)
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_vmap_is_a_loop_in_which_each_example_has_its_own_outliers(rows: int) -> None:
    layer = Int8Linear.from_float(nn.Linear(64, 16), Int8Config(budget=2))
    x = torch.randn(3, rows, 64)
    x[1, 0, 9] = 50
    assert torch.equal(torch.vmap(layer)(x), torch.stack([layer(example) for example in x]))
    assert torch.equal(torch.vmap(layer, in_dims=1)(x), torch.stack([layer(example) for example in x.unbind(1)]))


def test_gradients_through_vmap() -> None:
    """Reverse mode works through a vmap; `torch.func.grad` does not, PyTorch has it for no operator of a library."""
    layer = Int8Linear.from_float(nn.Linear(8, 4))
    x = torch.randn(5, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(torch.vmap(layer)(x).sum(), x)
    torch.testing.assert_close(grad, layer.dequantized_weight().sum(0).expand(5, 8))
