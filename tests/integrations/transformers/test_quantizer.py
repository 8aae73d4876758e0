"""Loading, saving and running int8 transformers models."""

import copy
import filecmp
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, T5ForConditionalGeneration

import llmint8
from llmint8 import Int8Config, Int8Linear
from llmint8.analysis import plant_outliers
from llmint8.nn import Int8Conv1D
from llmint8.quantize import int8_layers, quantize_

RunModel = Callable[[PreTrainedModel], Tensor]
MakeCheckpoint = Callable[..., Path]
CAUSAL = ["llama", "llama-tied", "gpt2", "opt"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_map(model_folder: Path) -> dict[str, str]:
    """A device map of a llama with one layer on the disk and the rest in memory."""
    return {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"} | {
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", [*CAUSAL, "t5", "bert"])
def test_int8_is_close_to_float(
    architecture: str, dtype: torch.dtype, make_checkpoint: MakeCheckpoint, run_model: RunModel
) -> None:
    folder = make_checkpoint(architecture, dtype)
    model = llmint8.from_pretrained(folder, load_in_8bit=True)
    exact = run_model(llmint8.from_pretrained(folder, load_in_8bit=False, dtype=torch.float32))
    logits = run_model(model)
    assert logits.dtype == dtype
    # Relative error of 8-bit weights and activations through two layers; 16-bit rounding adds some.
    assert (logits.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("architecture", CAUSAL)
def test_both_ways_of_asking_are_the_same(
    architecture: str, make_checkpoint: MakeCheckpoint, run_model: RunModel
) -> None:
    folder = make_checkpoint(architecture, torch.bfloat16)
    expected = run_model(llmint8.from_pretrained(folder, load_in_8bit=True))
    for config in (Int8Config(), {"quant_method": "llmint8"}):
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        assert torch.equal(run_model(model), expected)


@pytest.mark.parametrize("shards", ["10GB", "60KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("architecture", [*CAUSAL, "t5", "bert"])
def test_load_save_load_save_is_bit_identical(
    architecture: str, shards: str, make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    model = llmint8.from_pretrained(make_checkpoint(architecture, torch.bfloat16))
    expected = run_model(model)
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first, max_shard_size=shards)
    assert len(list(first.glob("*.safetensors"))) > 1 or shards == "10GB"
    again = type(model).from_pretrained(first)
    assert torch.equal(run_model(again), expected)
    again.save_pretrained(second, max_shard_size=shards)
    assert files(first) == files(second)
    assert filecmp.cmpfiles(first, second, files(first), shallow=False)[1:] == ([], [])
    assert again.config.quantization_config == Int8Config()


def test_sharded_16_bit_checkpoints_load_the_same(make_checkpoint: MakeCheckpoint, run_model: RunModel) -> None:
    single = run_model(llmint8.from_pretrained(make_checkpoint("llama")))
    sharded = make_checkpoint("llama", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert torch.equal(run_model(llmint8.from_pretrained(sharded)), single)


@pytest.mark.parametrize("stage", ["16-bit", "int8"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, "some on disk", "all on disk"], ids=str)
def test_device_maps_give_the_same_logits(
    device_map: str | dict, stage: str, make_checkpoint: MakeCheckpoint, run_unfused: RunModel, tmp_path: Path
) -> None:
    folder = make_checkpoint("llama", torch.bfloat16)
    model = llmint8.from_pretrained(folder)
    expected = run_unfused(model)
    if stage == "int8":
        folder = tmp_path / "int8"
        model.save_pretrained(folder)
    device_map = {"some on disk": disk_map(folder), "all on disk": {"": "disk"}}.get(str(device_map), device_map)
    model = llmint8.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    for _ in range(2):
        assert torch.equal(run_unfused(model), expected)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(run_unfused(llmint8.from_pretrained(tmp_path / "again")), expected)


KEPT = {
    "llama": {"lm_head"},
    "llama-tied": {"lm_head"},
    "gpt2": {"lm_head"},
    "opt": {"lm_head"},
    "bert": {"classifier"},
    "t5": {
        f"{part}.block.{i}.layer.{j}.DenseReluDense.wo" for part, j in (("encoder", 1), ("decoder", 2)) for i in (0, 1)
    }
    | {"lm_head"},
}


@pytest.mark.parametrize("architecture", KEPT)
def test_heads_and_what_the_model_keeps_in_fp32_stay(architecture: str, make_checkpoint: MakeCheckpoint) -> None:
    model = llmint8.from_pretrained(make_checkpoint(architecture, torch.float16))
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, module in linear.items() if not isinstance(module, Int8Linear)} == KEPT[architecture]
    assert len(list(int8_layers(model))) > 6
    if architecture == "gpt2":
        assert all(type(layer) is Int8Conv1D for _, layer in int8_layers(model))
    if architecture == "t5":
        assert model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32


def test_a_base_model_has_no_head_to_keep(make_checkpoint: MakeCheckpoint) -> None:
    model = AutoModel.from_pretrained(make_checkpoint("bert"), quantization_config=Int8Config())
    assert not any(type(module) is nn.Linear for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "bert", "t5", "opt", "gpt2"])
def test_kept_layers_are_quantized_on_request(
    architecture: str, make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    names = sorted(KEPT[architecture])
    folder = make_checkpoint(architecture)
    model = llmint8.from_pretrained(folder, include_modules=names)
    assert all(isinstance(model.get_submodule(name), Int8Linear) for name in names)
    exact = run_model(llmint8.from_pretrained(folder, load_in_8bit=False))
    expected = run_model(model)
    assert (expected - exact).norm() / exact.norm() < 0.03
    model.save_pretrained(tmp_path / "a")
    again = llmint8.from_pretrained(tmp_path / "a")
    assert torch.equal(run_model(again), expected)
    again.save_pretrained(tmp_path / "b")
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files(tmp_path / "a"), shallow=False)[1:] == ([], [])


def test_skip_modules(make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path) -> None:
    model = llmint8.from_pretrained(make_checkpoint(), skip_modules=["mlp", "model.layers.1", "q_proj"])
    names = [f"model.layers.0.self_attn.{n}_proj" for n in "kvo"]
    assert [name for name, _ in int8_layers(model)][:3] == names
    assert "model.layers.0.mlp.up_proj" in dict(int8_layers(model))  # `mlp` is neither an end nor a beginning
    model.save_pretrained(tmp_path / "int8")
    again = llmint8.from_pretrained(tmp_path / "int8")
    assert dict(int8_layers(again)).keys() == dict(int8_layers(model)).keys()
    assert torch.equal(run_model(again), run_model(model))


def test_quantize_in_memory_is_the_same_and_can_be_saved(
    make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    for architecture in (*CAUSAL, "bert", "t5"):
        folder = make_checkpoint(architecture)
        expected = run_model(llmint8.from_pretrained(folder))
        model = llmint8.quantize_(llmint8.from_pretrained(folder, load_in_8bit=False))
        assert torch.equal(run_model(model), expected)
        model.save_pretrained(tmp_path / "int8")
        assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "int8")), expected)


@pytest.mark.parametrize(
    "architecture",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in [*CAUSAL, "bert"] if name != "llama")],
)
def test_without_our_import_a_checkpoint_fails_loudly(
    architecture: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Transformers alone only warns of an unknown method and would load codes into float layers: garbage."""
    model = llmint8.from_pretrained(make_checkpoint(architecture))
    model.save_pretrained(tmp_path / "int8")
    code = f"from transformers import {type(model).__name__} as M\nM.from_pretrained({str(tmp_path / 'int8')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "llmint8" in run.stderr
    assert "ignore_mismatched_sizes" in run.stderr
    run = subprocess.run([sys.executable, "-c", f"import llmint8\n{code}"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


SCALE = "model.layers.1.mlp.up_proj.weight_scale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(SCALE), f"{SCALE} is missing"),
        (lambda t: t.update({SCALE: t[SCALE][:, 0].contiguous()}), rf"{SCALE} is F32 \[96\]"),
        (lambda t: t.update({SCALE: t[SCALE][:5].contiguous()}), rf"{SCALE} is F32 \[5, 1\]"),
        (lambda t: t.update({SCALE: t[SCALE].half()}), rf"{SCALE} is F16"),
        (lambda t: t.pop(SCALE.removesuffix("_scale")), r"up_proj\.weight is missing"),
        (lambda t: t.pop("model.layers.0.self_attn.q_proj.weight"), r"q_proj\.weight is missing"),
    ],
    ids=["no-scale", "1-D-scale", "short-scale", "fp16-scale", "no-weight", "no-flat-weight"],
)
@pytest.mark.parametrize("device_map", [None, {"": "disk"}], ids=["memory", "disk"])
def test_a_damaged_checkpoint_is_refused(
    change: Callable, message: str, device_map: dict | None, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    llmint8.from_pretrained(make_checkpoint()).save_pretrained(tmp_path / "int8")
    folder = damaged(tmp_path / "int8", change)
    kwargs = {"device_map": device_map, "offload_folder": tmp_path / "offload"} if device_map else {}
    for load in (llmint8.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(llmint8.CheckpointError, match=message):
            load(folder, **kwargs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_with_nan_is_refused_while_loading(value: float, make_checkpoint: MakeCheckpoint) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = value

    folder = damaged(make_checkpoint(), spoil)
    message = r"model\.layers\.0\.mlp\.up_proj\.weight \[96, 64\] has a NaN or Inf"
    for load in (llmint8.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(llmint8.CheckpointError, match=message):
            load(folder, quantization_config=Int8Config())


def test_a_weight_that_is_not_float_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.int32)

    with pytest.raises(llmint8.CheckpointError, match=r"up_proj\.weight is I32, which cannot be quantized"):
        llmint8.from_pretrained(damaged(make_checkpoint(), spoil))


def test_a_missing_bias_is_zero_as_for_a_float_layer(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.bias"
    model = llmint8.from_pretrained(damaged(make_checkpoint("bert"), lambda t: t.pop(name)))
    assert not model.get_parameter(name).any()
    model.save_pretrained(tmp_path / "int8")
    with pytest.raises(llmint8.CheckpointError, match=r"query\.bias is missing"):
        llmint8.from_pretrained(damaged(tmp_path / "int8", lambda t: t.pop(name)))


def test_layers_that_are_not_in_the_checkpoint_stay_float(make_checkpoint: MakeCheckpoint) -> None:
    """The usual BERT checkpoint has no pooler; transformers makes one, with a warning."""
    folder = damaged(make_checkpoint("bert"), lambda t: [t.pop(n) for n in list(t) if "pooler" in n])
    model = llmint8.from_pretrained(folder)
    assert type(model.bert.pooler.dense) is nn.Linear
    assert len(list(int8_layers(model))) == 12


def test_dequantize_gives_a_float_model(make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path) -> None:
    model = llmint8.from_pretrained(make_checkpoint(dtype=torch.bfloat16))
    weight = model.model.layers[0].mlp.up_proj.dequantized_weight(torch.bfloat16)
    model.save_pretrained(tmp_path / "int8")  # after it transformers keeps config.dtype as a string
    model.dequantize()
    assert not list(int8_layers(model))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, weight)
    model.save_pretrained(tmp_path / "float")
    assert "quantization_config" not in json.loads((tmp_path / "float" / "config.json").read_text())
    assert torch.equal(run_model(AutoModelForCausalLM.from_pretrained(tmp_path / "float")), run_model(model))


def test_copies_and_moves_of_a_model(make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path) -> None:
    model = llmint8.from_pretrained(make_checkpoint(dtype=torch.bfloat16))
    expected = run_model(model)
    clones = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).cpu().to("cpu")]
    for clone in clones:
        assert torch.equal(run_model(clone), expected)
        clone.save_pretrained(tmp_path / "clone")
        assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "clone")), expected)
    cast = copy.deepcopy(model).to(torch.float32)
    assert all(layer.weight_scale.dtype == torch.float32 for _, layer in int8_layers(cast))
    logits = run_model(cast)
    assert logits.dtype == torch.float32
    assert (logits - expected.float()).norm() / logits.norm() < 0.02  # the rounding of bf16 is gone
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    llmint8.quantize_(empty)
    assert empty.model.layers[0].mlp.up_proj.weight.is_meta
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    assert torch.equal(run_model(empty.eval()), expected)


def test_runtime_settings_of_an_int8_checkpoint(
    make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    llmint8.from_pretrained(folder).save_pretrained(tmp_path / "int8")
    for settings in ({"threshold": 2.0}, {"budget": 3}, {"mode": "none"}, {"symmetric": True}):
        expected = run_model(llmint8.from_pretrained(folder, **settings))
        assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "int8", **settings)), expected)
        config = Int8Config(**settings)
        model = llmint8.from_pretrained(tmp_path / "int8", quantization_config=config)
        assert torch.equal(run_model(model), expected)
        assert model.config.quantization_config == config
        assert all(layer.int8_config == config for _, layer in int8_layers(model))


def test_the_whole_model_compiles_into_one_graph(make_checkpoint: MakeCheckpoint, run_unfused: RunModel) -> None:
    """With outliers on. torch's own rounding of fused operations is left out by running the graph as it is.

    A traced model always makes a mask, for which attention has another kernel, so bits are compared with the eager one.
    """
    for settings in ({"attn_implementation": "eager"}, {"threshold": 1.0, "attn_implementation": "eager"}, {}):
        model = llmint8.from_pretrained(make_checkpoint(), **settings)
        expected = run_unfused(model)
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        tokens = torch.randint(0, 160, (3, 20), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = compiled(input_ids=tokens, use_cache=False).logits
        if settings:
            assert torch.equal(logits, expected)
        else:
            torch.testing.assert_close(logits, expected, rtol=0, atol=0.02)
        assert counter.frame_count == 1
    assert model.hf_quantizer.is_compileable


def test_generation_with_every_cache(make_checkpoint: MakeCheckpoint) -> None:
    model = llmint8.from_pretrained(make_checkpoint())
    prompt = torch.randint(0, 160, (2, 24), generator=torch.Generator().manual_seed(2))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    dynamic = model.generate(prompt, **options)
    assert dynamic.shape == (2, 32)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **options), dynamic)


def test_a_t5_answers(make_checkpoint: MakeCheckpoint) -> None:
    model = T5ForConditionalGeneration.from_pretrained(make_checkpoint("t5"), quantization_config=Int8Config())
    output = model.generate(torch.ones(1, 20, dtype=torch.long), max_new_tokens=5, do_sample=False)
    assert output.shape[1] > 1


def test_footprint_is_the_sum_of_the_tensors(make_checkpoint: MakeCheckpoint) -> None:
    model = llmint8.from_pretrained(make_checkpoint(dtype=torch.bfloat16))
    linear = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3)
    rows = 2 * (64 * 2 + 32 * 2 + 96 * 2 + 64)
    rest = 2 * (160 * 64 * 2 + 64 * 5)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert model.get_memory_footprint() == linear + 4 * rows + rest + buffers


def test_experts_that_stay_float_are_announced(
    make_checkpoint: MakeCheckpoint, run_model: RunModel, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"4 fused expert weights, \d\d% of the parameters of MixtralForCausalLM"):
        model = llmint8.from_pretrained(make_checkpoint("mixtral"))
    assert {name.rpartition(".")[2] for name, _ in int8_layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model.save_pretrained(tmp_path / "int8")
    with pytest.warns(UserWarning, match="fused expert"):
        assert torch.equal(run_model(llmint8.from_pretrained(tmp_path / "int8")), run_model(model))


def test_planted_outliers_get_a_column_scale_on_every_way(
    make_checkpoint: MakeCheckpoint, run_model: RunModel, run_unfused: RunModel, tmp_path: Path
) -> None:
    model = llmint8.from_pretrained(make_checkpoint(), load_in_8bit=False, dtype=torch.float32)
    plant_outliers(model, columns=[1, 5], factor=(50.0, 50.0))
    model.save_pretrained(tmp_path / "planted", max_shard_size="20KB")
    loaded = llmint8.from_pretrained(tmp_path / "planted")
    quantized = quantize_(model)
    expected = run_model(quantized)
    layers = dict(int8_layers(loaded))
    assert (layers["model.layers.1.mlp.up_proj"].column_scale < 0.1).nonzero().flatten().tolist() == [1, 5]
    assert layers["model.layers.1.mlp.down_proj"].column_scale is None
    assert torch.equal(run_model(loaded), expected)
    torch.testing.assert_close(run_unfused(loaded), expected, rtol=0, atol=0.02 * expected.abs().max().item())
    loaded.save_pretrained(tmp_path / "int8", max_shard_size="20KB")
    again = llmint8.from_pretrained(tmp_path / "int8")
    assert torch.equal(run_model(again), expected)
    for source in ("planted", "int8"):
        offloaded = llmint8.from_pretrained(
            tmp_path / source, device_map={"": "disk"}, offload_folder=tmp_path / f"offload-{source}"
        )
        assert torch.equal(run_unfused(offloaded), run_unfused(again))
    with pytest.raises(ValueError, match="has a column_scale .* which bitsandbytes does not know"):
        llmint8.save_bitsandbytes(again, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    theirs = llmint8.from_pretrained(
        tmp_path / "planted", quantization_config=Int8Config(checkpoint_format="bitsandbytes")
    )
    assert all(layer.column_scale is None for _, layer in int8_layers(theirs))
    theirs.save_pretrained(tmp_path / "theirs")
    # A part of the state dict leaves the rest as it is.
    again = llmint8.from_pretrained(tmp_path / "int8")
    again.load_state_dict({"model.norm.weight": again.model.norm.weight}, strict=False)
    assert torch.equal(run_model(again), expected)
    # Replicas of nn.DataParallel have their tensors as attributes.
    replica = copy.deepcopy(again)
    for _, layer in int8_layers(replica):
        for name in ("weight", "weight_scale", "bias", "column_scale", "outlier_columns"):
            value = layer._parameters.pop(name)
            layer._parameters |= {name: None} if value is None else {}
            if value is not None:
                object.__setattr__(layer, name, value)
    torch.testing.assert_close(run_model(replica), expected)
    # A scale of another shape is refused.
    damaged = {name: t[:1] if name.endswith("column_scale") else t for name, t in again.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"column_scale must be float32 \[64\], got torch.float32 \[1\]"):
        again.load_state_dict(damaged)
    shards = [f for f in (tmp_path / "int8").glob("*.safetensors") if any("column_scale" in n for n in load_file(f))]
    tensors = {n: t[:1] if n.endswith("column_scale") else t for n, t in load_file(shards[0]).items()}
    save_file(tensors, shards[0], metadata={"format": "pt"})
    with pytest.raises(llmint8.CheckpointError, match=r"column_scale is F32 \[1\], which does not fit"):
        llmint8.from_pretrained(tmp_path / "int8")
