"""The whole cycle on architectures that each have something of their own."""

import filecmp
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as T  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

import llmint8
from llmint8.integrations.transformers.fused import unfuse
from llmint8.quantize import int8_layers

TEXT = {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**TEXT, "intermediate_size": 96}
VISION = {k: v for k, v in LLAMA.items() if k != "vocab_size"} | {"image_size": 28, "patch_size": 7}
BART = {"vocab_size": 160, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
_SIDES = [(side, key, n) for side in ("encoder", "decoder") for key, n in (("ffn_dim", 96), ("attention_heads", 4))]
BART |= {f"{side}_{key}": n for side, key, n in _SIDES}
T5 = {"vocab_size": 160, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}

TOKENS = torch.randint(5, 160, (2, 20), generator=torch.Generator().manual_seed(3))
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4))
IDS = {"input_ids": TOKENS}

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Tensor]]] = {
    # A subclass of nn.Linear that computes the same.
    "falcon": (lambda: T.FalconForCausalLM(T.FalconConfig(**TEXT)), IDS),
    "bloom": (lambda: T.BloomForCausalLM(T.BloomConfig(vocab_size=160, hidden_size=64, n_layer=2, n_head=4)), IDS),
    "qwen2": (lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True)), IDS),
    # A head that is tied together with two embeddings.
    "bart": (lambda: T.BartForConditionalGeneration(T.BartConfig(**BART)), IDS),
    # A head whose bias is tied as well.
    "bert-mlm": (lambda: T.BertForMaskedLM(T.BertConfig(**LLAMA, max_position_embeddings=64)), IDS),
    # Parents that initialize the weights of their children, and layers in fp32.
    "mt5": (
        lambda: T.MT5ForConditionalGeneration(T.MT5Config(**T5, decoder_start_token_id=0)),
        {**IDS, "decoder_input_ids": TOKENS},
    ),
    # A layer that is split in two while it is loaded.
    "dinov2": (
        lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**VISION, use_swiglu_ffn=True)),
        {"pixel_values": PIXELS},
    ),
    # Two models in one, and heads without a base model.
    "clip": (
        lambda: T.CLIPModel(
            T.CLIPConfig(text_config={**LLAMA, "max_position_embeddings": 64}, vision_config=VISION, projection_dim=32)
        ),
        {**IDS, "pixel_values": PIXELS},
    ),
    # A layer whose weight its parent reads.
    "mamba": (
        lambda: T.MambaForCausalLM(
            T.MambaConfig(vocab_size=160, hidden_size=64, num_hidden_layers=2, state_size=8, time_step_rank=4)
        ),
        IDS,
    ),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path, dict[str, Tensor]]:
    """A float model, the folder of its checkpoint, and inputs for it."""
    torch.manual_seed(0)
    make, inputs = MODELS[request.param]
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "float")
    return model, tmp_path / "float", inputs


def run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = model(**inputs)
    return output["logits"] if "logits" in output else output["logits_per_image"]


def same_files(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.iterdir())
    return filecmp.cmpfiles(first, second, names, shallow=False)[1:] == ([], [])


def test_the_whole_cycle(case: tuple, tmp_path: Path) -> None:
    float_model, folder, inputs = case
    exact = run(float_model, inputs)
    model = llmint8.from_pretrained(folder)
    layers = {name for name, _ in int8_layers(model)}
    expected = run(model, inputs)
    assert layers
    assert (expected - exact).norm() / exact.norm() < 0.05

    model.save_pretrained(tmp_path / "a")
    llmint8.quantize_checkpoint(folder, tmp_path / "streamed")
    assert same_files(tmp_path / "a", tmp_path / "streamed")
    again = llmint8.from_pretrained(tmp_path / "a")
    assert {name for name, _ in int8_layers(again)} == layers
    assert torch.equal(run(again, inputs), expected)
    again.save_pretrained(tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")

    for source in ("float", "a"):
        offload = tmp_path / f"offload-{source}"
        on_disk = llmint8.from_pretrained(tmp_path / source, device_map={"": "disk"}, offload_folder=offload)
        for loaded in (model, on_disk):
            unfuse(loaded)
        assert torch.equal(run(on_disk, inputs), run(model, inputs))

    in_memory = llmint8.quantize_(float_model)
    in_memory.save_pretrained(tmp_path / "c")
    assert torch.equal(run(llmint8.from_pretrained(tmp_path / "c"), inputs), run(in_memory, inputs))

    llmint8.save_bitsandbytes(model, tmp_path / "bnb")
    assert {name for name, _ in int8_layers(llmint8.from_pretrained(tmp_path / "bnb"))} == layers

    llmint8.dequantize_(again)
    values = run(again, inputs)
    again.save_pretrained(tmp_path / "d")
    assert torch.equal(run(type(again).from_pretrained(tmp_path / "d"), inputs), values)


def test_heads_on_request(case: tuple, tmp_path: Path) -> None:
    float_model, folder, inputs = case
    if isinstance(float_model, T.MambaForCausalLM):
        names = ["lm_head"]
    else:
        kept = llmint8.from_pretrained(folder)
        names = [name for name, module in kept.named_modules() if type(module) is nn.Linear]
    exact = run(float_model, inputs)
    model = llmint8.from_pretrained(folder, include_modules=names)
    if isinstance(float_model, T.MambaForCausalLM):  # its forward casts to the dtype of the head's weight
        with pytest.raises(TypeError, match=r"got torch\.int8"):
            run(model, inputs)
        return
    expected = run(model, inputs)
    assert (expected - exact).norm() / exact.norm() < 0.05
    model.save_pretrained(tmp_path / "a")
    again = llmint8.from_pretrained(tmp_path / "a")
    assert torch.equal(run(again, inputs), expected)
    again.save_pretrained(tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_heads_without_a_base_model_stay_float() -> None:
    for model, kept in (
        (T.CLIPForImageClassification(T.CLIPConfig(vision_config=VISION)), {"classifier"}),
        (T.T5ForQuestionAnswering(T.T5Config(**T5)), {"qa_outputs"}),
        (T.SwitchTransformersModel(T.SwitchTransformersConfig(**T5, num_experts=2)), {"router"}),
    ):
        llmint8.quantize_(model)
        linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
        assert kept <= {part for name in linear for part in name.split(".")}


@pytest.mark.slow
def test_a_part_of_an_int8_model(tmp_path: Path) -> None:
    """The vision tower of a CLIP: with our import it is int8, without it loading fails rather than give garbage."""
    make, _ = MODELS["clip"]
    torch.manual_seed(0)
    model = llmint8.quantize_(make().eval())
    model.save_pretrained(tmp_path)
    vision = llmint8.from_pretrained(tmp_path, auto_class="CLIPVisionModel")
    with torch.no_grad():
        expected = model.vision_model(pixel_values=PIXELS).pooler_output
        assert torch.equal(vision(pixel_values=PIXELS).pooler_output, expected)
    for name in ("CLIPModel", "CLIPVisionModel", "CLIPTextModel"):
        code = f"from transformers import {name} as M\nM.from_pretrained({str(tmp_path)!r})"
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert process.returncode == 1, name
        assert "ignore_mismatched_sizes" in process.stderr


def test_saving_without_the_original_format(tmp_path: Path) -> None:
    """The flag leaves out the conversions of the model, never those that make the checkpoint safe to open."""
    torch.manual_seed(0)
    model = llmint8.quantize_(MODELS["dinov2"][0]().eval())
    model.save_pretrained(tmp_path / "a", save_original_format=False)
    again = llmint8.from_pretrained(tmp_path / "a")
    inputs = {"pixel_values": PIXELS}
    assert torch.equal(run(again, inputs), run(model, inputs))
    code = f"from transformers import Dinov2Model as M\nM.from_pretrained({str(tmp_path / 'a')!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1


def test_only_the_main_process_saves(tmp_path: Path) -> None:
    model = llmint8.quantize_(MODELS["bloom"][0]())
    model.save_pretrained(tmp_path / "a", is_main_process=False)
    assert not list((tmp_path / "a").glob("*"))
