"""int8 models under accelerate's hooks and maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import (
    cpu_offload,
    disk_offload,
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from accelerate.utils import compute_module_sizes
from torch import nn

import llmint8
from llmint8 import Int8Linear
from llmint8.quantize import int8_layers


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return llmint8.quantize_(
        nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64, bias=False), nn.LayerNorm(64))
    )


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


def test_cpu_offload(model: nn.Sequential, x: torch.Tensor) -> None:
    expected = model(x)
    cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert model[0].weight.is_meta
    assert torch.equal(model(x), expected)
    assert model[0].weight.is_meta


def test_disk_offload(model: nn.Sequential, x: torch.Tensor, tmp_path: Path) -> None:
    expected = model(x)
    disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert model[0].weight_scale.is_meta
    for _ in range(2):
        assert torch.equal(model(x), expected)


def test_dispatch_of_a_mixed_map(model: nn.Sequential, x: torch.Tensor, tmp_path: Path) -> None:
    expected = model(x)
    model = dispatch_model(model, {"0": "disk", "1": "cpu", "2": "cpu", "3": "disk"}, "cpu", offload_dir=str(tmp_path))
    assert torch.equal(model(x), expected)


def test_sizes_are_those_of_int8(model: nn.Sequential) -> None:
    sizes = compute_module_sizes(model)
    assert sizes["0"] == 64 * 96 + 4 * 96 + 4 * 96
    assert sizes["2"] == 64 * 96 + 4 * 64
    first = sizes["0"] + 100
    device_map = infer_auto_device_map(model, {"cpu": first + sizes["2"], "disk": 10**9})
    assert device_map["0"] == "cpu"
    assert set(device_map.values()) == {"cpu", "disk"}
    assert infer_auto_device_map(model, {"cpu": 10**9}) == {"": "cpu"}


def test_sizes_of_a_transformers_model(make_checkpoint: Callable[..., Path]) -> None:
    model = llmint8.from_pretrained(make_checkpoint(dtype=torch.bfloat16))
    sizes = compute_module_sizes(model)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert sizes[""] == sum(p.numel() * p.element_size() for p in model.parameters()) + buffers


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_load_checkpoint_and_dispatch(
    dtype: torch.dtype | None, model: nn.Sequential, x: torch.Tensor, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with init_empty_weights():
        empty = nn.Sequential(Int8Linear(64, 96), nn.GELU(), Int8Linear(96, 64, bias=False), nn.LayerNorm(64))
    loaded = load_checkpoint_and_dispatch(empty, str(tmp_path), device_map={"": "cpu"}, dtype=dtype)
    x = x if dtype is None else x.to(dtype)
    if dtype is None:
        assert torch.equal(loaded(x), model(x))
    else:  # accelerate casts every float tensor, the scales too, which the operator refuses
        with pytest.raises(TypeError, match="weight_scale float32"):
            loaded(x)
        for _, layer in int8_layers(loaded):
            layer.weight_scale = nn.Parameter(layer.weight_scale.float(), requires_grad=False)
        assert loaded(x).isfinite().all()
