"""The path of a CUDA tensor without a GPU: what is launched, and that nothing waits for what the device finds."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

from llmint8 import Int8Config, Int8Linear, ops
from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.compile_only import compile_only
from llmint8.kernels.triton.int8_linear import int8_linear
from llmint8.outliers import OutlierRule

MODES = {
    "budget": (OutlierRule("budget", 0.0, 5, True, False), ["zeros", "column_scores", "quantize_rows", "mixed_linear"]),
    "many": (
        OutlierRule("budget", 1.0, 48, True, False),
        ["zeros", "column_scores", "quantize_rows", "gather_outliers", "mixed_linear"],
    ),
    "threshold": (
        OutlierRule("threshold", 6.0, 0, False, True),
        ["zeros", "column_scores", "quantize_rows", "mixed_linear"],
    ),
    "static": (OutlierRule("static", 0.0, 0, False, False), ["quantize_rows", "mixed_linear"]),
    "none": (OutlierRule("none", 0.0, 0, False, False), ["quantize_rows", "mixed_linear"]),
}
COLUMNS = torch.tensor([3, 9])
# Operators of PyTorch that make or look at a tensor without running anything on its device.
FREE = {
    "empty",
    "device",
    "slice",
    "view",
    "t",
    "transpose",
    "unsqueeze",
    "narrow",
    "as_strided",
    "detach",
    "_unsafe_view",
}


class Recorder(TorchDispatchMode):
    """Adds the operators that launch something to a list."""

    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name not in FREE:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is launched, in order, through PyTorch and through Triton's launcher, which is replaced."""
    names: list[str] = []
    launch = lambda self, *args, **kwargs: names.append(self.__name__.removesuffix("_kernel"))  # noqa: E731
    monkeypatch.setattr(JITFunction, "run", launch)
    with Recorder(names):
        yield names


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [1, 2, 32, 33, 300])
@pytest.mark.parametrize("architecture", [89, 90])
def test_fake_cuda_tensors_and_launches(
    architecture: int, m: int, mode: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_architecture", lambda index: architecture)
    monkeypatch.setattr(tiles, "_tables", lambda architecture, index: tiles.built_in(architecture))
    monkeypatch.setattr(tiles, "is_aligned", lambda x: True)  # fake tensors have no address
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    rule, prefill = MODES[mode]
    with FakeTensorMode():  # an operator whose result depends on data would raise an error here
        x = torch.empty(m, 192, dtype=torch.bfloat16, device="cuda:0")
        weight = torch.empty(24, 192, dtype=torch.int8, device="cuda:0")
        scale, bias = torch.empty(24, 1, device="cuda:0"), torch.empty(24, device="cuda:0", dtype=torch.bfloat16)
        columns = torch.empty(2, dtype=torch.long, device="cuda:0") if mode == "static" else None
        launched.clear()
        y = int8_linear(x, weight, scale, bias, columns, rule)
    assert (y.shape, y.dtype, y.device) == ((m, 24), torch.bfloat16, torch.device("cuda:0"))
    if m == 1:
        assert launched == ["one_row"]
    elif m <= tiles.built_in(architecture).decode_rows:
        assert launched == ["weight_only_linear"]
    elif architecture == 90:
        assert launched == ["dequantize_weight", "addmm"]
    else:
        assert launched == prefill


@pytest.mark.parametrize("architecture", [75, 80, 90, 103, "gfx942"])
@pytest.mark.parametrize("m", [1, 8, 300])
def test_kernels_by_architecture(architecture: int | str, m: int) -> None:
    x, weight = torch.empty(m, 256, dtype=torch.float16), torch.zeros(64, 256, dtype=torch.int8)
    with compile_only(architecture) as launches:
        int8_linear(x, weight, torch.ones(64, 1), None, None, MODES["none"][0])
    names = [launch.binary.name.removesuffix("_kernel") for launch in launches]
    if m == 1:
        assert names == ["one_row"]
    elif m == 8:
        assert names == ["weight_only_linear"]
    elif architecture in (90, 103):  # int8 gains too little there; PyTorch multiplies
        assert names == ["dequantize_weight"]
    elif architecture == 75:  # PyTorch multiplies
        assert names == ["quantize_rows", "scale_product"]
    else:
        assert names == ["quantize_rows", "mixed_linear"]


@pytest.mark.parametrize("mode", ["budget", "threshold", "static", "none"])
def test_one_graph_with_fake_cuda_tensors(mode: str) -> None:
    settings = {"budget": {"budget": 4}, "threshold": {"threshold": 6.0}, "static": {}, "none": {}}[mode]
    layer = Int8Linear.from_float(torch.nn.Linear(48, 24))
    if mode == "static":
        layer.set_outlier_columns(COLUMNS)
        layer.int8_config = Int8Config(mode="static", budget=2)
    else:
        layer.int8_config = Int8Config(mode=mode, **settings)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    for m in (1, 40, 77):
        x = torch.randn(m, 48)
        assert torch.equal(compiled(x), layer(x))
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = ops.int8_linear(
            torch.empty(40, 48, device="cuda"),
            torch.empty(24, 48, dtype=torch.int8, device="cuda"),
            torch.empty(24, 1, device="cuda"),
        )
    assert y.device.type == "cuda"
    calls = [node for node in graphs[-1].graph.nodes if "int8_linear" in str(node.target)]
    assert len(calls) == 1
