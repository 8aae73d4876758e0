"""What the estimate adds for `int8_linear` on a GPU is what its kernels allocate there, followed on the meta device."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from llmint8.estimation.allocations import Allocations
from llmint8.estimation.workspace import Device, workspace
from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.int8_linear import int8_linear
from llmint8.outliers import OutlierRule

K, N = 1024, 2048
RULES = {
    "an eighth, gathered": OutlierRule("budget", threshold=5.0, budget=K // 8, relative=True),
    "few, read in place": OutlierRule("budget", budget=16, relative=True, symmetric=True),
    "threshold": OutlierRule("threshold", threshold=6.0),
    "static": OutlierRule("static", budget=100),
    "none": OutlierRule("none"),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 20, 700])
@pytest.mark.parametrize("architecture", [75, 80, 89, 90, 100, 103, "gfx942"])
def test_as_much_as_is_allocated(
    architecture: int | str, m: int, dtype: torch.dtype, rule: OutlierRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(tiles, "tables", lambda device: tiles.built_in(architecture))
    monkeypatch.setattr(tiles, "architecture", lambda device: architecture)
    with torch.device("meta"):
        x, weight, scale = torch.empty(m, K, dtype=dtype), torch.empty(N, K, dtype=torch.int8), torch.empty(N, 1)
        columns = torch.empty(100, dtype=torch.long) if rule.mode == "static" else None
    arguments: tuple[Any, ...] = (x, weight, scale, None, columns)
    existing = [tensor for tensor in arguments if tensor is not None]
    device = Device("cuda", architecture)
    with torch.no_grad(), Allocations(device, existing) as record:
        y = int8_linear(*arguments, rule)
    allocated = record.peak() - y.nbytes
    estimated = workspace("llmint8::int8_linear", (*arguments, *rule), device)
    # Scores are gone before the result is made, and the row of ones has no scale and no zero point.
    assert allocated <= estimated <= allocated + 4 * K + 8


def test_a_weight_that_is_dequantized_for_the_call_is_counted() -> None:
    with torch.device("meta"):
        x, weight, scale = torch.empty(512, K).bfloat16(), torch.empty(N, K, dtype=torch.int8), torch.empty(N, 1)
    for architecture in (90, 103):
        arguments = (x, weight, scale, None, None, *RULES["none"])
        assert workspace("llmint8::int8_linear", arguments, Device("cuda", architecture)) == 2 * N * K
