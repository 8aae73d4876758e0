"""`quantize_checkpoint` writes the bytes that loading in 8 bit and saving would."""

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import llmint8
from llmint8 import Int8Config

RunModel = Callable[[PreTrainedModel], torch.Tensor]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_as_saved(
    source: Path, tmp_path: Path, config: Int8Config | None = None, size: str = "60KB", **kwargs: object
) -> Path:
    """Quantizes by both ways and compares every file."""
    model = llmint8.from_pretrained(source, quantization_config=config, **kwargs)
    if config is not None and config.checkpoint_format == "bitsandbytes":
        llmint8.save_bitsandbytes(model, tmp_path / "saved", max_shard_size="60KB")
    else:
        model.save_pretrained(tmp_path / "saved", max_shard_size=size)
    target = tmp_path / "streamed"
    result = llmint8.quantize_checkpoint(source, target, config, max_shard_size=size, **kwargs)
    expected, got = files(tmp_path / "saved"), files(target)
    assert sorted(got) == sorted(expected)
    for name in expected:
        assert got[name] == expected[name], name
    assert result.layers == sum(1 for _ in model.modules() if isinstance(_, llmint8.Int8Linear))
    return target


@pytest.mark.filterwarnings("ignore:.*fused expert weights")
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "opt", "t5", "mixtral", "bert"])
def test_every_architecture(
    architecture: str, make_checkpoint: Callable[..., Path], run_model: RunModel, tmp_path: Path
) -> None:
    source = make_checkpoint(architecture, torch.bfloat16, max_shard_size="100KB")
    # `save_pretrained` puts all tensors that were split from one, such as experts, into one file.
    target = assert_same_as_saved(source, tmp_path, size="4MB" if architecture == "mixtral" else "60KB")
    loaded, direct = llmint8.from_pretrained(target), llmint8.from_pretrained(source)
    assert torch.equal(run_model(loaded), run_model(direct))


SETTINGS = {
    "another dtype": {"dtype": "float16"},
    "widened": {"dtype": torch.float32},
    "paper": {"config": Int8Config(threshold=6.0)},
    "overrides": {"config": Int8Config(overrides={"down_proj": {"budget": 4}}, skip_modules=["layers.0"])},
    "head": {"config": Int8Config(include_modules=["lm_head"])},
    "bitsandbytes": {"config": Int8Config(threshold=6.0, symmetric=True, checkpoint_format="bitsandbytes")},
    "bitsandbytes, head": {"config": Int8Config(include_modules=["lm_head"], checkpoint_format="bitsandbytes")},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_settings(architecture: str, name: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    assert_same_as_saved(make_checkpoint(architecture, torch.bfloat16), tmp_path, **SETTINGS[name])


def test_columns_that_int8_would_lose(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint("llama", torch.bfloat16)
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.k_proj.weight"][:, [3, 17]] /= 64
    tensors["lm_head.weight"][:, 5] /= 32
    save_file(tensors, file, metadata={"format": "pt"})
    target = assert_same_as_saved(source, tmp_path, Int8Config(include_modules=["lm_head"]))
    names = set(json.loads((target / "model.safetensors.index.json").read_text())["weight_map"])
    scaled = {name for name in names if name.endswith("column_scale")}
    assert scaled == {"model.layers.0.self_attn.k_proj.column_scale", "lm_head.column_scale"}


def test_a_checkpoint_with_tokenizer_and_template(smollm2: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    seen = []
    result = llmint8.quantize_checkpoint(smollm2, str(target), progress=lambda *args: seen.append(args))
    assert result.folder == target
    assert result.layers == 210
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (smollm2 / name).read_bytes()
    assert json.loads((target / "config.json").read_text())["quantization_config"]["quant_method"] == "llmint8"
    assert not list(target.glob(".*"))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2] == (target / "model.safetensors").stat().st_size
    with safe_open(target / "model.safetensors", framework="pt") as file:
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == result.bytes  # noqa: SIM118
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    model = llmint8.from_pretrained(target)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert "Paris" in tokenizer.decode(model.generate(**prompt, max_new_tokens=10)[0])


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


WEIGHT = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "nan": (lambda t: t[WEIGHT].__setitem__((5, 7), torch.nan), "NaN or Inf"),
    "missing": (lambda t: t.pop("model.norm.weight"), "model.norm.weight is missing in the checkpoint"),
    "shape": (lambda t: t.update({WEIGHT: t[WEIGHT][:-1].contiguous()}), r"should be \[96, 64\], got \[95, 64\]"),
    "shape of a float": (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"should be \[64\], got \[3\]"),
    "dtype": (lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.int32)}), "cannot be quantized"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_nothing_is_left(name: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source, (change, message) = make_checkpoint(), DAMAGE[name]
    edit(source, change)
    with pytest.raises(llmint8.CheckpointError, match=message):
        llmint8.quantize_checkpoint(source, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_refuses_what_makes_no_sense(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint()
    int8 = tmp_path / "int8"
    llmint8.quantize_checkpoint(source, int8)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    target = tmp_path / "target"
    for arguments, error, message in (
        ((int8, target), ValueError, "is int8 already"),
        ((source, source), FileExistsError, "is not empty"),
        ((source, tmp_path / "file"), NotADirectoryError, "is a file"),
        ((tmp_path / "file", target), FileNotFoundError, "is a file, not the folder of a checkpoint"),
        ((tmp_path / "nothing", target), FileNotFoundError, "does not exist"),
        ((tmp_path / "adapter", target), ValueError, "is an adapter"),
        (("nobody/nothing", target), OSError, "the hub gave no model of that name"),
        ((source, target, Int8Config(include_modules=["nothing"])), ValueError, "include_modules names 'nothing'"),
        ((source, target, Int8Config(mode="static")), ValueError, "needs calibrated columns"),
    ):
        with pytest.raises(error, match=message):
            llmint8.quantize_checkpoint(*arguments)
    with pytest.raises(ValueError, match="cannot be both the source and the target"):
        llmint8.quantize_checkpoint(source, source, overwrite=True)
    with pytest.raises(ValueError, match="dtype must be float16, bfloat16 or float32"):
        llmint8.quantize_checkpoint(source, target, dtype="int8")
    with pytest.raises(ValueError, match="not supported"):
        llmint8.quantize_checkpoint(source, target, max_shard_size="5 bananas")
    assert not target.exists()


def test_a_model_of_the_hub(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint("llama", torch.bfloat16, max_shard_size="100KB")
    (source / "tokenizer.json").write_text("{}")
    snapshot = tmp_path / "snapshot"  # links to blobs, as the hub's cache keeps them
    snapshot.mkdir()
    asked = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(name)
        for file in filter_repo_objects(
            [file.name for file in source.iterdir()] + ["original/consolidated.safetensors", "pytorch_model.bin"],
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
        ):
            (snapshot / file).symlink_to(source / file)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    llmint8.quantize_checkpoint("someone/model", tmp_path / "a")
    llmint8.quantize_checkpoint(source, tmp_path / "b")
    assert asked == ["someone/model"]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert "tokenizer.json" in files(tmp_path / "a")
    assert not any(file.is_symlink() for file in (tmp_path / "a").iterdir())
