"""Checkpoints of bitsandbytes, both ways, against the real bitsandbytes."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import llmint8
from llmint8 import Int8Config
from llmint8.checkpoints.formats.bitsandbytes import _absmax, config_from_bitsandbytes, config_to_bitsandbytes
from llmint8.quantize import int8_layers

MakeCheckpoint = Callable[..., Path]
RunModel = Callable[[PreTrainedModel], Tensor]
ARCHITECTURES = ["llama", "llama-tied", "gpt2", "opt"]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call that bf16 is cast to fp16


@pytest.fixture
def theirs(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Callable[..., tuple[PreTrainedModel, Path]]:
    """Returns a function: architecture -> model loaded by bitsandbytes, and the folder it was saved in."""

    def make(architecture: str, **kwargs: object) -> tuple[PreTrainedModel, Path]:
        config = BitsAndBytesConfig(load_in_8bit=True, **kwargs)
        folder = make_checkpoint(architecture, torch.float16)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float16)
        model.save_pretrained(tmp_path / "theirs")
        return model.eval(), tmp_path / "theirs"

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_theirs_load_unchanged(architecture: str, theirs: Callable, run_model: RunModel, tmp_path: Path) -> None:
    expected_model, folder = theirs(architecture)
    model = llmint8.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    layers = dict(int8_layers(model))
    assert layers
    assert {f"{name}.SCB" for name in layers} == {name for name in tensors if name.endswith(".SCB")}
    for name, layer in layers.items():
        assert torch.equal(layer.weight, tensors[f"{name}.weight"])
        assert torch.equal(layer.weight_scale[:, 0], tensors[f"{name}.SCB"] / 127)
        assert layer.int8_config == config_from_bitsandbytes({"load_in_8bit": True})
    expected, logits = run_model(expected_model), run_model(model)
    # The same weights on both sides; the codes of activations differ, for bitsandbytes lets outlier columns widen the
    # row scale and computes in fp16.
    assert (logits - expected).norm() / expected.norm() < 0.02
    model.save_pretrained(tmp_path / "again")  # stays in their form, bit for bit
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    entry = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert entry["quant_method"] == "bitsandbytes"
    assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "again")), logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ours_load_in_bitsandbytes(
    architecture: str, make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    model = llmint8.from_pretrained(make_checkpoint(architecture, torch.float16), threshold=6.0, symmetric=True)
    expected = run_model(model)
    llmint8.save_bitsandbytes(model, tmp_path / "form")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "form", dtype=torch.float16)
    modules = {n: m for n, m in theirs.named_modules() if isinstance(m, bitsandbytes.nn.Linear8bitLt)}
    layers = dict(int8_layers(model))
    assert modules.keys() == layers.keys()
    for name, module in modules.items():
        assert torch.equal(module.weight.data, layers[name].weight)
        torch.testing.assert_close(module.weight.SCB, layers[name].weight_scale[:, 0] * 127, rtol=1e-7, atol=0)
    logits = run_model(theirs)
    assert (logits - expected).norm() / expected.norm() < 0.02
    # And the model goes on as ours.
    assert torch.equal(run_model(model), expected)
    assert model.config.quantization_config == Int8Config(threshold=6.0, symmetric=True)
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "ours")), expected)


def test_their_threshold_and_skipped_modules(theirs: Callable) -> None:
    _, folder = theirs("llama", llm_int8_threshold=3.5, llm_int8_skip_modules=["lm_head", "down_proj"])
    model = llmint8.from_pretrained(folder)
    assert model.config.quantization_config.threshold == 3.5
    assert not [name for name, _ in int8_layers(model) if "down_proj" in name]
    assert llmint8.from_pretrained(folder, budget=8).config.quantization_config.mode == "budget"
    _, folder = theirs("llama", llm_int8_threshold=0.0)
    assert llmint8.from_pretrained(folder).config.quantization_config.mode == "none"


@pytest.mark.slow
def test_without_bitsandbytes_installed(theirs: Callable, run_model: RunModel) -> None:
    _, folder = theirs("llama")
    code = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "import torch, llmint8\n"
        f"model = llmint8.from_pretrained({str(folder)!r})\n"
        "print(float(model(torch.arange(40)[None]).logits.double().sum()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    model = llmint8.from_pretrained(folder)
    assert float(run.stdout) == float(model(torch.arange(40)[None]).logits.double().sum())


def test_offloaded_to_disk(theirs: Callable, run_unfused: RunModel, tmp_path: Path) -> None:
    _, folder = theirs("llama")
    offloaded = llmint8.from_pretrained(folder, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert torch.equal(run_unfused(offloaded), run_unfused(llmint8.from_pretrained(folder)))


def test_damaged_and_foreign_checkpoints(theirs: Callable) -> None:
    _, folder = theirs("llama")
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.0.mlp.up_proj"
    tensors = {n: t for n, t in whole.items() if n != f"{name}.SCB"}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(llmint8.CheckpointError, match=f"{name}.weight is int8, but its scale"):
        llmint8.from_pretrained(folder)
    save_file(whole | {f"{name}.weight_format": torch.tensor(2, dtype=torch.uint8)}, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError):  # transformers shows the reason, a tiled weight_format, in its report
        llmint8.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"load_in_8bit": False, "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="only 8-bit"):
        llmint8.from_pretrained(folder)


def test_a_float_model_has_nothing_to_write(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model = llmint8.from_pretrained(make_checkpoint(), load_in_8bit=False)
    with pytest.raises(ValueError, match="no int8 layers"):
        llmint8.save_bitsandbytes(model, tmp_path / "form")
    assert not (tmp_path / "form").exists()


@pytest.mark.parametrize(
    "config",
    [
        Int8Config(threshold=4.0, symmetric=True),
        Int8Config(mode="none", symmetric=True),
        Int8Config(threshold=4.0),
        Int8Config(threshold=4.0, relative=True),
        Int8Config(budget=8),
    ],
    ids=str,
)
def test_config_round_trip(config: Int8Config) -> None:
    restored = config_from_bitsandbytes(config_to_bitsandbytes(config))
    assert restored == config.replace(checkpoint_format="bitsandbytes")


def test_scales_survive_the_round_trip_for_every_mantissa() -> None:
    """`(absmax / 127 * 127) / 127 == absmax / 127` in fp32, so a checkpoint does not drift when it is rewritten."""
    absmax = torch.arange(1 << 23, 1 << 24, dtype=torch.int32).float()
    scale = absmax / 127
    assert torch.equal(_absmax(scale) / 127, scale)
    for dtype in (torch.float16, torch.bfloat16):  # of 16-bit weights, the absmax itself comes back
        absmax = torch.linspace(1, 2, 4097).to(dtype).float()
        assert torch.equal(_absmax(absmax / 127), absmax)
