"""`from_pretrained`: what it takes, and what it refuses before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

import llmint8
from llmint8 import CheckpointError, Int8Config, from_pretrained
from llmint8.quantize import int8_layers, quantize_

MakeCheckpoint = Callable[..., Path]
RunModel = Callable[[PreTrainedModel], Tensor]


@pytest.mark.parametrize(
    ("architecture", "auto_class", "expected"),
    [
        ("llama", None, "LlamaForCausalLM"),
        ("t5", None, "T5ForConditionalGeneration"),
        ("bert", None, "BertForSequenceClassification"),
        ("bert", "AutoModel", "BertModel"),
        ("llama", "AutoModelForSequenceClassification", "LlamaForSequenceClassification"),
        ("llama", transformers.AutoModel, "LlamaModel"),
        ("gpt2", transformers.GPT2LMHeadModel, "GPT2LMHeadModel"),
    ],
)
def test_any_auto_class(
    architecture: str, auto_class: Any, expected: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(architecture)
    from_pretrained(folder).save_pretrained(tmp_path / "int8")
    for source in (folder, tmp_path / "int8"):
        model = from_pretrained(source, load_in_8bit=True, auto_class=auto_class)
        assert type(model).__name__ == expected
        assert list(int8_layers(model))
        assert not model.training


def test_a_new_head_on_an_int8_checkpoint_is_float(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path / "int8")
    model = from_pretrained(tmp_path / "int8", auto_class="AutoModelForSequenceClassification", num_labels=3)
    assert type(model.score) is torch.nn.Linear
    assert model(torch.ones(1, 20, dtype=torch.long)).logits.shape == (1, 3)


def test_keywords_of_transformers(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint(dtype=torch.bfloat16)
    from_pretrained(folder).save_pretrained(tmp_path / "int8")
    for source, settings in ((folder, {}), (tmp_path / "int8", {}), (tmp_path / "int8", {"threshold": 3.0})):
        model, info = from_pretrained(
            source,
            dtype=torch.float16,
            attn_implementation="eager",
            output_loading_info=True,
            output_hidden_states=True,
            low_cpu_mem_usage=True,
            **settings,
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert model.dtype == torch.float16
        assert model.config._attn_implementation == "eager"
        assert model.config.output_hidden_states
    config = transformers.AutoConfig.from_pretrained(tmp_path / "int8", rms_norm_eps=1e-3)
    for settings in ({}, {"budget": 5}):
        assert from_pretrained(tmp_path / "int8", config=config, **settings).config.rms_norm_eps == 1e-3


def test_a_bitsandbytes_config_is_understood(make_checkpoint: MakeCheckpoint) -> None:
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0, llm_int8_skip_modules=["mlp.up_proj"])
    model = from_pretrained(make_checkpoint(), quantization_config=given)
    expected = Int8Config(threshold=4.0, symmetric=True, skip_modules=["mlp.up_proj"])
    assert model.config.quantization_config == expected
    with pytest.raises(ValueError, match="only 8-bit"):
        from_pretrained(make_checkpoint(), quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_not_in_8_bit(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model = from_pretrained(make_checkpoint(), load_in_8bit=False)
    assert not list(int8_layers(model))
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"already int8.*dequantize_"):
        from_pretrained(tmp_path / "int8", load_in_8bit=False)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"load_in_8bit": "yes"}, TypeError, "got 'yes'"),
        ({"load_in_4bit": True}, ValueError, "load_in_4bit"),
        ({"load_in_8bit": False, "threshold": 6.0}, ValueError, "contradicts threshold"),
        ({"load_in_8bit": False, "quantization_config": Int8Config()}, ValueError, "contradicts quantization_config"),
        ({"quantization_config": Int8Config(), "budget": 3}, ValueError, "both quantization_config and budget"),
        ({"quantization_config": 8}, TypeError, "got int"),
        ({"quantization_config": {"quant_method": "gptq"}}, ValueError, "'gptq'"),
        ({"threshold": -1.0}, ValueError, "got -1.0"),
        ({"threshold": float("nan")}, ValueError, "got nan"),
        ({"mode": "none", "threshold": 6.0}, ValueError, "contradicts"),
        ({"dtype": torch.float64}, ValueError, "got torch.float64"),
        ({"dtype": torch.int8}, Exception, "int8"),
        ({"auto_class": "AutoModelForNothing"}, ValueError, "'AutoModelForNothing'"),
        ({"include_modules": ["no_such_layer"]}, ValueError, "'no_such_layer'"),
        ({"device_map": {"": "disk"}}, ValueError, "offload_folder"),
    ],
)
def test_bad_arguments_are_named(
    kwargs: dict[str, Any], error: type[Exception], message: str, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(error, match=message):
        from_pretrained(make_checkpoint(), **kwargs)


def test_settings_that_are_fixed_in_an_int8_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"skip_modules=\['mlp'\] cannot be changed"):
        from_pretrained(tmp_path / "int8", skip_modules=["mlp"])


def test_paths_that_are_no_checkpoint(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(FileNotFoundError, match="no/such/folder does not exist"):
        from_pretrained("/no/such/folder")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        from_pretrained("./nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_pretrained(tmp_path)
    folder = make_checkpoint()
    with pytest.raises(FileNotFoundError, match="is a file, not the folder"):
        from_pretrained(folder / "config.json")
    with pytest.raises(OSError, match="org/model is not a folder.*connect"):  # the hub cannot be reached here
        from_pretrained("org/model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        from_pretrained(folder)


def test_pickled_weights_only_when_asked_for(make_checkpoint: MakeCheckpoint, run_model: RunModel) -> None:
    folder = make_checkpoint()
    expected = run_model(from_pretrained(folder))
    torch.save(from_pretrained(folder, load_in_8bit=False).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*use_safetensors=False"):
        from_pretrained(folder)
    assert torch.equal(run_model(from_pretrained(folder, use_safetensors=False)), expected)


@pytest.mark.parametrize("method", ["gptq", "awq", "no_such_method"])
def test_a_checkpoint_of_another_method(method: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"already quantized with '{method}'"):
        from_pretrained(folder)


def test_a_setting_of_a_newer_version(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["group_size"] = 128
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="group_size"):
        from_pretrained(tmp_path)


def test_what_is_refused_leaves_the_checkpoint_alone(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="got -1"):
        from_pretrained(folder, budget=-1)
    llmint8.from_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_hub_keywords_reach_the_weights_of_an_int8_checkpoint(
    make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path / "models" / "sub")
    expected = run_model(from_pretrained(tmp_path / "models" / "sub", budget=3))
    assert torch.equal(run_model(from_pretrained(tmp_path / "models", subfolder="sub", budget=3)), expected)


def test_the_configuration_of_the_caller_is_not_changed(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    before = config.to_dict()
    from_pretrained(tmp_path, config=config, threshold=3.0)
    assert config.to_dict() == before


def test_keywords_that_are_none(make_checkpoint: MakeCheckpoint) -> None:
    model = from_pretrained(make_checkpoint(), gguf_file=None, use_safetensors=None, device_map=None, config=None)
    assert list(int8_layers(model))


def test_a_folder_with_an_adapter(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint()
    base = from_pretrained(folder, load_in_8bit=False)
    adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapter.peft_config["default"].base_model_name_or_path = str(folder)
    adapter.save_pretrained(tmp_path / "adapter")
    model = from_pretrained(tmp_path / "adapter", load_in_8bit=True)
    assert list(int8_layers(model))
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_modules_of_an_int8_checkpoint_are_fixed_in_a_config_too(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    from_pretrained(make_checkpoint()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"include_modules=\['lm_head'\] cannot be changed"):
        from_pretrained(tmp_path, quantization_config=Int8Config(include_modules=["lm_head"]))


def test_settings_changed_after_loading_are_saved(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model = from_pretrained(make_checkpoint())
    for _, layer in int8_layers(model):
        layer.int8_config = Int8Config(threshold=4.0)
    model.save_pretrained(tmp_path / "same")
    assert from_pretrained(tmp_path / "same").config.quantization_config == Int8Config(threshold=4.0)
    _, layer = next(int8_layers(model))
    layer.int8_config = Int8Config(budget=3)
    model.save_pretrained(tmp_path / "different")
    again = from_pretrained(tmp_path / "different")
    settings = {name: layer.int8_config.runtime_settings() for name, layer in int8_layers(again)}
    assert settings == {name: layer.int8_config.runtime_settings() for name, layer in int8_layers(model)}
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "different/config.json").read_bytes()
    # What is asked for when it is loaded is meant for every layer.
    everywhere = from_pretrained(tmp_path / "different", budget=5)
    assert {layer.int8_config.budget for _, layer in int8_layers(everywhere)} == {5}
    symmetric = from_pretrained(tmp_path / "different", symmetric=True)
    assert {layer.int8_config.symmetric for _, layer in int8_layers(symmetric)} == {True}
    assert next(int8_layers(symmetric))[1].int8_config.budget == 3


def test_overrides_by_pattern(make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path) -> None:
    overrides = {"mlp.down_proj": {"budget": 7}, "model.layers.0.*": {"mode": "none"}}
    model = from_pretrained(make_checkpoint(), overrides=overrides, skip_modules=["*.1.self_attn.[qk]_proj"])
    layers = dict(int8_layers(model))
    assert layers["model.layers.1.mlp.down_proj"].int8_config.budget == 7
    assert layers["model.layers.1.mlp.up_proj"].int8_config == Int8Config().replace(
        skip_modules=["*.1.self_attn.[qk]_proj"]
    )
    assert {layer.int8_config.mode for name, layer in layers.items() if ".0." in name} == {"none"}
    assert "model.layers.1.self_attn.q_proj" not in layers
    assert "model.layers.0.self_attn.q_proj" in layers
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config.quantization_config == model.config.quantization_config
    assert torch.equal(run_model(again), run_model(model))
    with pytest.raises(ValueError, match="overrides names 'mlp.experts', but no linear layer has that name"):
        from_pretrained(make_checkpoint(), overrides={"mlp.experts": {"budget": 7}})
    static = {"up_proj": {"mode": "static"}}
    floats = from_pretrained(make_checkpoint(), load_in_8bit=False)
    with pytest.raises(ValueError, match="mode='static' of model.layers.0.mlp.up_proj"):
        from_pretrained(make_checkpoint(), overrides=static)
    with pytest.raises(ValueError, match="mode='static' of model.layers.0.mlp.up_proj"):
        quantize_(floats, Int8Config(overrides=static))
    assert not any(int8_layers(floats))
    quantized = quantize_(floats, Int8Config(overrides=overrides))
    assert quantized.model.layers[1].mlp.down_proj.int8_config.budget == 7


def test_settings_of_a_layer_whose_name_ends_another() -> None:
    from llmint8.integrations.transformers.saved_state import _with_settings_of_layers

    model = torch.nn.ModuleDict(
        {"layer": torch.nn.Linear(8, 8), "tower": torch.nn.ModuleDict({"layer": torch.nn.Linear(8, 8)})}
    )
    quantize_(model)
    model["layer"].int8_config = Int8Config(budget=7)
    config = _with_settings_of_layers(Int8Config(), model)
    assert config.for_layer("layer").budget + config.for_layer("tower.layer").budget == 7 + 1 / 8
