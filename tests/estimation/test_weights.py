"""Weights are exact to the byte: an estimate is compared with the model that loading makes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import llmint8
from llmint8 import Int8Config

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ARCHITECTURES = ["llama", "llama-tied", "gpt2", "opt", "t5", "mixtral", "bert"]


def bytes_of(model: PreTrainedModel) -> int:
    """All parameters and buffers, each storage once."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())


def check(path: Path, quantized_from: Path | None = None, **settings: object) -> llmint8.Estimate:
    """Compares both columns with loaded models; an int8 checkpoint has none that is not quantized."""
    options = {"auto_class": settings.pop("auto_class", None)}
    dtype = settings.pop("dtype", None)
    estimate = llmint8.estimate(path, Int8Config(**settings) if settings else None, dtype=dtype, **options)
    loading = {} if dtype is None else {"dtype": dtype}
    int8 = llmint8.from_pretrained(path, **settings, **loading, **options)
    assert estimate.int8.weights.total == int8.get_memory_footprint() == bytes_of(int8)
    codes = sum(layer.weight.nbytes for layer in int8.modules() if isinstance(layer, llmint8.Int8Linear))
    assert estimate.int8.weights.int8 == codes > 0
    plain = llmint8.from_pretrained(quantized_from or path, load_in_8bit=False, **loading, **options)
    assert estimate.unquantized.weights.total == plain.get_memory_footprint() == bytes_of(plain)
    assert estimate.parameters == sum(p.numel() for p in plain.parameters())
    assert estimate.architecture == type(plain).__name__
    assert estimate.unquantized.weights.int8 == estimate.unquantized.weights.scales == 0
    return estimate


@pytest.mark.filterwarnings("ignore:.*fused expert weights")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_loaded_model(architecture: str, dtype: torch.dtype, make_checkpoint: Callable[..., Path]) -> None:
    check(make_checkpoint(architecture, dtype))


@pytest.mark.filterwarnings("ignore:.*fused expert weights")
@pytest.mark.parametrize("architecture", ["t5", "mixtral"])
def test_follows_the_dtype_that_is_asked_for(architecture: str, make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint(architecture, torch.float32)
    in_fp16 = check(path, dtype=torch.float16).int8.weights.kept
    in_bf16 = check(path, dtype="bfloat16").int8.weights.kept
    for parts, dtype in ((in_fp16, "float32"), (in_bf16, "bfloat16")):
        found = {part.dtype for part in parts if part.name.endswith("wo.weight")}
        assert found == ({dtype} if architecture == "t5" else set())  # T5 wants `wo` in fp32 rather than in fp16


def test_counts_what_include_and_skip_change(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("llama", torch.bfloat16)
    plain = check(path)
    head = check(path, include_modules=["lm_head"])
    assert head.int8.weights.int8 == plain.int8.weights.int8 + 160 * 64
    assert check(path, skip_modules=["mlp.down_proj"]).int8.weights.int8 == plain.int8.weights.int8 - 2 * 64 * 96


def test_a_tied_head_that_is_included_has_a_weight_of_its_own(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("llama-tied", torch.bfloat16)
    check(path, include_modules=["lm_head"])


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "t5", "bert"])
def test_an_int8_checkpoint_counts_as_it_is(
    architecture: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint(architecture, torch.bfloat16)
    llmint8.from_pretrained(path, skip_modules=["0"]).save_pretrained(tmp_path / "int8")
    check(tmp_path / "int8", quantized_from=path)
    llmint8.save_bitsandbytes(llmint8.from_pretrained(path), tmp_path / "bitsandbytes")
    check(tmp_path / "bitsandbytes", quantized_from=path)


def test_columns_and_their_scales_in_a_checkpoint_are_counted(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, 3] /= 1000
    model.save_pretrained(tmp_path / "float")
    before = llmint8.estimate(tmp_path / "float").int8.weights.scales
    int8 = llmint8.from_pretrained(tmp_path / "float")
    int8.save_pretrained(tmp_path / "scaled")
    scaled = check(tmp_path / "scaled", quantized_from=tmp_path / "float").int8.weights.scales
    assert scaled == before + 4 * 64
    llmint8.calibrate(int8, [torch.arange(40)[None]], budget=4)
    int8.save_pretrained(tmp_path / "static")
    static = check(tmp_path / "static", quantized_from=tmp_path / "float").int8.weights.scales
    columns = sum(layer.outlier_columns.nbytes for _, layer in llmint8.quantize.int8_layers(int8))
    assert static == scaled + columns > scaled


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "t5", "bert"])
def test_the_configuration_alone_is_enough(
    architecture: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint(architecture, torch.bfloat16)
    alone = tmp_path / "alone.json"
    alone.write_bytes((path / "config.json").read_bytes())
    with_weights = llmint8.estimate(path)
    without = llmint8.estimate(alone)
    assert (without.int8, without.unquantized) == (with_weights.int8, with_weights.unquantized)


def test_the_configuration_of_a_static_checkpoint_is_enough(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = llmint8.quantize_(make_model("llama"))
    llmint8.calibrate(model, [torch.arange(40)[None]], budget=4)
    model.save_pretrained(tmp_path)
    whole, alone = llmint8.estimate(tmp_path), llmint8.estimate(tmp_path / "config.json")
    columns = sum(layer.outlier_columns.nbytes for _, layer in llmint8.quantize.int8_layers(model))
    assert whole.int8.weights.total == alone.int8.weights.total + columns
    assert any("static" in note for note in alone.notes)


def test_shards_that_are_not_all_there_count_by_the_configuration(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("llama", torch.bfloat16, max_shard_size="50KB")
    whole = llmint8.estimate(path)
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    part = llmint8.estimate(path)
    assert part.int8 == whole.int8
    assert any(shards[0].name in note for note in part.notes)


def test_large_groups_are_named(make_checkpoint: Callable[..., Path]) -> None:
    kept = llmint8.estimate(make_checkpoint("mixtral", torch.bfloat16)).int8.weights.kept
    assert kept[0].name == "model.layers.*.mlp.experts.gate_up_proj"
    assert kept[0].bytes == 2 * 2 * 4 * 2 * 96 * 64  # layers, bytes, experts, gate and up, features
    assert [part.bytes for part in kept] == sorted((part.bytes for part in kept), reverse=True)


def test_auto_class_chooses_the_model(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("bert", torch.bfloat16)
    assert check(path, auto_class="AutoModel").architecture == "BertModel"


def test_loading_needs_the_largest_weight_besides(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_checkpoint("llama", torch.bfloat16)
    estimate = llmint8.estimate(path)
    assert estimate.int8.loading == estimate.int8.weights.total + 2 * 64 * 96
    assert estimate.unquantized.loading == estimate.unquantized.weights.total
    llmint8.from_pretrained(path).save_pretrained(tmp_path / "int8")
    again = llmint8.estimate(tmp_path / "int8")
    assert again.int8.loading == again.int8.weights.total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "nothing"}, "nothing"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "already quantized with 'gptq'"),
        ({"dtype": "float64"}, "dtype must be float16, bfloat16 or float32, got torch.float64"),
    ],
)
def test_refuses_a_configuration_it_cannot_use(
    change: dict, message: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    config = json.loads((make_checkpoint("llama") / "config.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        llmint8.estimate(file)


def test_refuses_arguments_that_are_out_of_range(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_checkpoint("llama")
    for wrong in ({"batch": 0}, {"context": 0}, {"dtype": "int8"}, {"device": "tpu"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            llmint8.estimate(path, **wrong)
    with pytest.raises(TypeError, match=r"batch must be an int, got 1\.5"):
        llmint8.estimate(path, batch=1.5)
    with pytest.raises(ValueError, match="include_modules names 'nothing'"):
        llmint8.estimate(path, Int8Config(include_modules=["nothing"]))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        llmint8.estimate(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        llmint8.estimate(tmp_path / "nothing")
    with pytest.raises(OSError, match="not a folder here, and the hub gave no model"):
        llmint8.estimate("nobody/nothing")


def test_loads_nothing(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_checkpoint("llama", torch.bfloat16)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something is loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    assert llmint8.estimate(path).int8.weights.total > 0
