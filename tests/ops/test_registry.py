"""What it takes to add an operator: this file has one, and everything that a declaration gives it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmint8.kernels import backend
from llmint8.kernels.cpu import native
from llmint8.ops.registry import Gradient, Operator, define


def double(x: Tensor, times: int) -> Tensor:
    return x * 2**times


def check_times(kernel: Any, x: Tensor, times: int) -> Tensor:
    if times < 0:
        raise ValueError(f"times must be 0 or more, got {times}")
    return kernel(x.flatten(), times).view(x.shape)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.times = inputs[1]


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad * 2**ctx.times, None


@pytest.fixture(scope="module")
def toy() -> Operator:
    return define(
        "toy_double",
        "(Tensor x, int times) -> Tensor",
        fallback=double,
        fake=lambda x, times: torch.empty_like(x),
        around=check_times,
        gradient=Gradient(save, backward),
        one_by_one=True,
    )


def test_a_declaration_makes_a_whole_operator(toy: Operator) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    for name in ("toy_double", "toy_double_fallback", "toy_double_with_gradient"):
        torch.library.opcheck(getattr(torch.ops.llmint8, name), (x, 3))
    assert torch.equal(toy.call(x, 1), 2 * x)
    assert torch.equal(toy.run(x.detach(), 1), 2 * x)
    (grad,) = torch.autograd.grad(toy.call(x, 3).sum(), x)
    assert torch.equal(grad, torch.full_like(x, 8))
    assert torch.equal(torch.vmap(lambda row: toy.call(row, 1))(x), 2 * x)
    compiled = torch.compile(lambda x: toy.call(x, 2) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), 4 * x + 1)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        toy.call(x, -1)


def test_the_first_backend_that_takes_a_call_runs_it(toy: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Toy(backend.Backend):
        def has(self, operator: str) -> bool:
            return operator == "toy_double" and self.name != "without"

        def kernel(self, operator: str) -> Any:
            asked.append(self.name)
            return lambda x, times: NotImplemented if self.name == "refuses" else x * 0

    def make(name: str, takes: bool = True) -> backend.Backend:
        return Toy(name, lambda *args: takes, lambda device: takes, lambda device: 1)

    x = torch.ones(2)
    names = ("elsewhere", "without", "refuses")
    monkeypatch.setattr(backend, "BACKENDS", tuple(make(name, name != "elsewhere") for name in names))
    assert torch.equal(toy.run(x, 1), 2 * x)  # the fallback
    assert asked == ["refuses"]
    monkeypatch.setattr(backend, "BACKENDS", (*backend.BACKENDS, make("last")))
    assert torch.equal(toy.run(x, 1), 0 * x)


def test_the_native_kernels_bind_the_operators_that_are_listed() -> None:
    if not native.load():
        pytest.skip("there are no native kernels here")
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    ours = {name for namespace, _, name in names if namespace == "llmint8" and not name.startswith("toy_")}
    bound = {name for name in ours if torch._C._dispatch_has_kernel_for_dispatch_key(f"llmint8::{name}", "CPU")}
    assert bound == backend.NATIVE.bound


def test_an_operator_without_a_native_kernel_does_not_load_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: pytest.fail("the native kernels were loaded"))
    codes, scale = torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1)
    assert torch.equal(torch.ops.llmint8.dequantize_weight(codes, scale, torch.float32), torch.ones(2, 4))
