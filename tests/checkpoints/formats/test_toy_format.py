"""A checkpoint format is one class and one entry in the registry: everything else works with it."""

import json

import pytest
import torch
from safetensors import safe_open

import llmint8
from llmint8.checkpoints import formats
from llmint8.config import Int8Config


class ToyFormat(formats.Format):
    """Codes and row absmax under names of its own."""

    name = "toy"
    quant_method = "toy-int8"
    weight_name = "codes"
    scale_names = ("row_scale",)
    scale_is_column = False

    def from_config(self, stored):
        """Returns our settings, which are stored as they are."""
        return Int8Config.from_dict({**stored, "quant_method": Int8Config.quant_method})

    def to_config(self, config):
        """Returns our settings under the method of this format."""
        return {**config.to_dict(), "quant_method": self.quant_method}

    def read_scale(self, tensors):
        """Returns the scale as a column."""
        return tensors["row_scale"][:, None].clone()

    def write_scale(self, scale):
        """Returns the scale as a vector."""
        return {"row_scale": scale[:, 0].clone()}


@pytest.fixture
def toy(monkeypatch):
    """Registers the format."""
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, ToyFormat()))
    return Int8Config(checkpoint_format="toy")


@pytest.fixture
def float_folder(tmp_path):
    """A tiny random Llama in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "float")
    return tmp_path / "float"


def _tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)


def _assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_a_model_is_saved_and_loaded_bit_for_bit(toy, float_folder, tmp_path):
    model = llmint8.from_pretrained(float_folder, quantization_config=toy)
    model.save_pretrained(tmp_path / "int8")
    stored = _tensors(tmp_path / "int8")
    layer = "model.layers.1.mlp.down_proj"
    assert stored[f"{layer}.codes"].dtype == torch.int8
    assert stored[f"{layer}.row_scale"].shape == (32,)
    assert not any(name.endswith(("proj.weight", "weight_scale")) for name in stored)
    assert json.loads((tmp_path / "int8/config.json").read_text())["quantization_config"]["quant_method"] == "toy-int8"
    again = llmint8.from_pretrained(tmp_path / "int8")
    _assert_equal(again.state_dict(), model.state_dict())
    again.save_pretrained(tmp_path / "again")
    _assert_equal(_tensors(tmp_path / "again"), stored)


def test_streaming_writes_what_saving_writes(toy, float_folder, tmp_path):
    llmint8.from_pretrained(float_folder, quantization_config=toy).save_pretrained(tmp_path / "saved")
    llmint8.quantize_checkpoint(float_folder, tmp_path / "streamed", toy)
    _assert_equal(_tensors(tmp_path / "streamed"), _tensors(tmp_path / "saved"))


def test_estimate_reads_it(toy, float_folder, tmp_path):
    model = llmint8.from_pretrained(float_folder, quantization_config=toy)
    model.save_pretrained(tmp_path / "int8")
    estimate = llmint8.estimate(tmp_path / "int8")
    assert estimate.int8.weights == llmint8.estimate(float_folder, toy).int8.weights
