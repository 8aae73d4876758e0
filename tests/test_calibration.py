"""Static outlier columns: found once, kept in the checkpoint."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import llmint8
from llmint8 import Int8Config, calibrate, quantize_
from llmint8.quantize import int8_layers

RunModel = Callable[[PreTrainedModel], Tensor]


def tokens(seed: int, rows: int = 2) -> Tensor:
    return torch.randint(0, 160, (rows, 20), generator=torch.Generator().manual_seed(seed))


def test_finds_the_columns_that_are_large() -> None:
    torch.manual_seed(0)
    model = quantize_(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)))
    x = torch.randn(5, 30, 32)
    x[..., [3, 20]] *= 25
    before = model(x[0])
    assert calibrate(model, x, budget=2) is model
    assert model[0].outlier_columns.tolist() == [3, 20]
    assert model[2].outlier_columns.numel() <= 2
    assert model[0].int8_config == Int8Config(mode="static", budget=2)
    calibrate(model, x, budget=0.5)
    assert model[0].outlier_columns.tolist() == [3, 20]  # the others do not reach the threshold
    assert model[0].int8_config == Int8Config(mode="static", budget=0.5)
    exact = nn.functional.relu(x[0] @ model[0].dequantized_weight().T + model[0].bias)
    error = (model[1](model[0](x[0])) - exact).abs().mean()
    model[0].int8_config = Int8Config(mode="none")
    assert error * 5 < (model[1](model[0](x[0])) - exact).abs().mean()
    assert before.shape == (30, 8)


@pytest.mark.parametrize(
    "batches",
    [[{"input_ids": tokens(0)}, {"input_ids": tokens(1)}], [(tokens(0),)], [tokens(0)], (tokens(i) for i in range(2))],
    ids=["mappings", "tuples", "tensors", "generator"],
)
def test_batches_of_any_form(batches: object, make_checkpoint: Callable[..., Path]) -> None:
    model = calibrate(llmint8.from_pretrained(make_checkpoint()), batches, budget=4, threshold=0)
    assert {tuple(layer.outlier_columns.shape) for _, layer in int8_layers(model)} == {(4,)}


def test_kept_in_the_checkpoint(
    make_checkpoint: Callable[..., Path], run_model: RunModel, run_unfused: RunModel, tmp_path: Path
) -> None:
    model = calibrate(llmint8.from_pretrained(make_checkpoint()), [tokens(0)], budget=4)
    expected = run_model(model)
    model.save_pretrained(tmp_path / "a")
    for load in (llmint8.from_pretrained, AutoModelForCausalLM.from_pretrained):
        again = load(tmp_path / "a")
        assert torch.equal(run_model(again), expected)
        assert again.config.quantization_config == Int8Config(mode="static", budget=4)
    again.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    offloaded = llmint8.from_pretrained(tmp_path / "a", device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert torch.equal(run_unfused(offloaded), run_unfused(model))


def test_another_mode_at_run_time_and_none_back(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint()
    model = calibrate(llmint8.from_pretrained(folder), [tokens(0)], budget=4)
    model.save_pretrained(tmp_path / "static")
    budget, info = llmint8.from_pretrained(tmp_path / "static", budget=8, mode="budget", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all(layer.outlier_columns is None for _, layer in int8_layers(budget))
    budget.save_pretrained(tmp_path / "budget")
    with pytest.raises(llmint8.CheckpointError, match="outlier_columns"):
        llmint8.from_pretrained(tmp_path / "budget", mode="static")
    with pytest.raises(ValueError, match="llmint8.calibrate"):
        llmint8.from_pretrained(folder, mode="static")
    with pytest.raises(ValueError, match="llmint8.calibrate"):
        quantize_(nn.Sequential(nn.Linear(2, 2)), Int8Config(mode="static"))


def test_bitsandbytes_gets_no_columns(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = calibrate(llmint8.from_pretrained(make_checkpoint()), [tokens(0)], budget=4)
    llmint8.save_bitsandbytes(model, tmp_path / "form")
    assert not [name for name in load_file(tmp_path / "form" / "model.safetensors") if "outlier" in name]
    assert model.config.quantization_config.mode == "static"


def test_nothing_changes_if_a_layer_is_not_reached() -> None:
    model = quantize_(nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)}))
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ValueError, match="no batch reached unused"):
        calibrate(model, [torch.ones(2, 8)])
    with pytest.raises(ValueError, match="no batch reached"):
        calibrate(model, [])
    assert model["used"].outlier_columns is None
    assert not model["used"]._forward_pre_hooks
    with pytest.raises(ValueError, match="no int8 layers"):
        calibrate(nn.Sequential(nn.Linear(2, 2)), [])


@pytest.mark.slow
def test_columns_of_one_text_serve_for_another(smollm2: Path) -> None:
    """KL divergence to fp32 on code, with columns from prose, against a search in every call (see README)."""
    from pydoc_data.topics import topics

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prose = tokenizer("\n".join(topics[name] for name in sorted(topics)[:20]), return_tensors="pt")["input_ids"][0]
    code = tokenizer(Path(argparse.__file__).read_text(), return_tensors="pt")["input_ids"][:, :1536]
    model = llmint8.from_pretrained(smollm2, dtype=torch.float32)
    reference = llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32)

    def divergence() -> float:
        total = 0.0
        with torch.inference_mode():
            for window in code.split(512, dim=1):
                expected, actual = (m(window).logits.log_softmax(-1) for m in (reference, model))
                total += (expected.exp() * (expected - actual)).sum().item()
        return total / code.numel()

    searched = divergence()
    calibrate(model, prose[:4096].view(8, 1, 512))
    assert divergence() < 1.15 * searched
