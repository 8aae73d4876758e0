"""Fused parts compute what the parts of transformers compute, where they may, and nowhere else."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

import llmint8
from llmint8 import ops
from llmint8.integrations.transformers.fused import fuse, unfuse
from llmint8.integrations.transformers.fused.conditions import is_fused
from llmint8.kernels.cpu import native
from llmint8.quantize import int8_layers

if not native.load():
    pytest.skip("without native kernels nothing is fused", allow_module_level=True)

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES)),
    "llama-bias": lambda: T.LlamaForCausalLM(T.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=None)),
    "mistral-sliding": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, sliding_window=8)),
    "qwen2": lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**SIZES, head_dim=16)),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES, head_dim=16)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8)),
    "olmo2": lambda: T.Olmo2ForCausalLM(T.Olmo2Config(**SIZES)),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(**SIZES, pad_token_id=0)),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**SIZES, num_local_experts=2)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4)),
    "bert": lambda: T.BertModel(T.BertConfig(**{**SIZES, "num_key_value_heads": None})),
}
# Classes that are fused, in the order of their names.
FUSED = {
    "llama": ["LlamaAttention", "LlamaDecoderLayer", "LlamaMLP", "LlamaRMSNorm"],
    "gemma3": ["Gemma3Attention", "Gemma3MLP", "Gemma3RMSNorm"],
    "qwen3": ["Qwen3Attention", "Qwen3DecoderLayer", "Qwen3MLP", "Qwen3RMSNorm"],
    "olmo2": ["Olmo2MLP", "Olmo2RMSNorm"],
    "phi3": ["Phi3RMSNorm"],
    "gpt2": [],
    "bert": [],
}
TOKENS = torch.randint(0, 160, (2, 20), generator=torch.Generator().manual_seed(1))


def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return llmint8.quantize_(model, llmint8.Int8Config(mode="none"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused operators that run."""
    names: list[str] = []
    for name in ("int8_linears", "gated_mlp", "rms_norm", "rotate", "decoder_layer"):
        function = getattr(ops, name)

        def spy(*args: Any, _name: str = name, _function: Callable = function) -> Any:
            names.append(_name)
            return _function(*args)

        monkeypatch.setattr(ops, name, spy)
    return names


def run(model: PreTrainedModel, tokens: Tensor = TOKENS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        output = model(tokens, **kwargs)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name: str) -> None:
    model = make(name)
    assert sorted({type(m).__name__ for m in model.modules() if is_fused(m)}) == FUSED[name]
    unfuse(model)
    assert not any(is_fused(m) for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_tokens_are_those_of_transformers(name: str) -> None:
    """In fp32 the two differ by roundings, which flip a code of an activation now and then (1/255 of its range)."""
    model = make(name)
    plain = unfuse_copy(model)
    few = TOKENS[:1, :6]  # not quantized
    torch.testing.assert_close(run(model, few), run(plain, few), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(model), run(plain), rtol=0.02, atol=0.02)
    padded = torch.ones_like(TOKENS)
    padded[0, :5] = 0
    torch.testing.assert_close(
        run(model, attention_mask=padded), run(plain, attention_mask=padded), rtol=0.02, atol=0.02
    )
    if not model.can_generate():
        return
    for tokens in (few, TOKENS[:, :4]):
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert torch.equal(model.generate(tokens, **options), plain.generate(tokens, **options))


def unfuse_copy(model: PreTrainedModel) -> PreTrainedModel:
    plain = copy.deepcopy(model)
    unfuse(plain)
    return plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_16_bit_results_are_no_further_from_fp32_than_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    exact = make(name)
    model = exact.__class__(exact.config).eval()
    llmint8.quantize_(model, llmint8.Int8Config(mode="none"))
    model.load_state_dict(exact.state_dict())
    model.to(dtype)
    with torch.no_grad():  # of the same rounded weights
        for mine, its in zip(exact.parameters(), model.parameters(), strict=True):
            mine.copy_(its)
    few = TOKENS[:1, :8]
    expected = run(exact, few)
    ours = (run(model, few).float() - expected).square().mean().sqrt()
    unfuse(model)
    theirs = (run(model, few).float() - expected).square().mean().sqrt()
    assert ours <= 1.1 * theirs


def test_a_step_of_decode_is_one_operator_a_layer(calls: list[str]) -> None:
    model = make("llama")
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache
        calls.clear()
        model(TOKENS[:, :1], cache=cache)
    assert calls == ["decoder_layer", "decoder_layer", "rms_norm"]


def test_layer_by_layer_and_part_by_part_give_the_same_bits() -> None:
    model = make("qwen3", torch.bfloat16)
    parts = copy.deepcopy(model)
    for layer in parts.model.layers:
        layer.__class__ = type(layer).plain_class
    with torch.no_grad():
        for m in (model, parts):
            m.cache = m(TOKENS, use_cache=True).cache
        for i in range(5):
            token = TOKENS[:, i : i + 1]
            assert torch.equal(model(token, cache=model.cache).logits, parts(token, cache=parts.cache).logits)


def test_gradients_compilers_autocast_and_training_are_left_to_transformers(calls: list[str]) -> None:
    model = make("llama")
    embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(TOKENS)
        torch.compile(model, backend="eager", fullgraph=True)(TOKENS)
    assert not calls


def test_hooks_on_layers_see_their_input_and_output(calls: list[str]) -> None:
    model = make("llama")
    seen: list[str] = []
    layer = model.model.layers[0]
    handles = [
        module.register_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
        for module in (layer.mlp.up_proj, layer.self_attn.k_proj, layer.input_layernorm)
    ]
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache
        model(TOKENS[:, :1], cache=cache)
    assert seen == ["LlamaRMSNorm", "Int8Linear", "Int8Linear"] * 2
    for handle in handles:
        handle.remove()
    calls.clear()
    with torch.no_grad():
        model(TOKENS[:, :1], cache=cache)
    assert calls == ["decoder_layer", "decoder_layer", "rms_norm"]


def test_hidden_states_and_attentions_are_those_of_transformers() -> None:
    model = make("llama")
    plain = unfuse_copy(model)
    few = TOKENS[:1, :6]
    with torch.no_grad():
        ours, theirs = (m(few, output_hidden_states=True, use_cache=True) for m in (model, plain))
        steps = [m(few[:, :1], cache=o.cache, output_hidden_states=True) for m, o in ((model, ours), (plain, theirs))]
    for a, b in ((ours, theirs), steps):
        assert len(a.hidden_states) == 3
        torch.testing.assert_close(a.hidden_states, b.hidden_states, rtol=1e-4, atol=1e-4)
    for m in (model, plain):
        m.set_attn_implementation("eager")
    with torch.no_grad():
        ours, theirs = (m(few, output_attentions=True) for m in (model, plain))
    torch.testing.assert_close(ours.attentions, theirs.attentions, rtol=1e-4, atol=1e-5)


def test_another_attention_is_respected() -> None:
    model = make("llama")
    used = []

    def mine(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple:
        used.append(query.shape[2])
        return query.transpose(1, 2), None

    T.AttentionInterface.register("mine", mine)
    model.set_attn_implementation("mine")
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache
        model(TOKENS[:, :1], cache=cache)
    assert used == [20, 20, 1, 1]


def test_layers_withoutlier_rule_of_their_own(calls: list[str]) -> None:
    model = make("llama")
    model.model.layers[0].mlp.up_proj.int8_config = llmint8.Int8Config(threshold=1.0)
    run(model)
    assert calls.count("gated_mlp") == 1


def test_a_budget_is_a_share_of_layers_of_several_widths(calls: list[str]) -> None:
    """The default: gate and up have fewer columns than down, and so fewer in floating point."""
    model = make("llama")
    for _, layer in int8_layers(model):
        layer.int8_config = llmint8.Int8Config()
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.outlier_rule != mlp.down_proj.outlier_rule
    run(model)
    assert calls.count("gated_mlp") == 2
    mlp.down_proj.int8_config = llmint8.Int8Config(symmetric=True)
    calls.clear()
    run(model)
    assert calls.count("gated_mlp") == 1


def test_copies_and_pickles_are_fused_and_equal(tmp_path: Path) -> None:
    model = make("llama")
    expected = run(model)
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert is_fused(other.model.layers[1])
        assert type(other.model.layers[1]) is type(model.model.layers[1])
        assert torch.equal(run(other), expected)


def test_dequantized_models_have_the_classes_of_transformers() -> None:
    model = llmint8.dequantize_(make("llama"))
    assert not any(is_fused(m) for m in model.modules())
    assert type(model.lm_head) is nn.Linear


def test_fusing_twice_is_fusing_once() -> None:
    model = make("llama")
    classes = [type(m) for m in model.modules()]
    fuse(model)
    assert [type(m) for m in model.modules()] == classes
    assert model._no_split_modules is None or type(model.model.layers[0]).__name__ in model._no_split_modules


def test_norms_in_another_dtype_than_the_rest(calls: list[str]) -> None:
    model = make("llama", torch.bfloat16)
    for layer in model.model.layers:
        layer.post_attention_layernorm.float()
    plain = unfuse_copy(model)
    few = TOKENS[:1, :6]
    with torch.no_grad():
        ours, theirs = model.model(few).last_hidden_state, plain.model(few).last_hidden_state
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    assert "decoder_layer" not in calls


def test_norms_whose_weight_is_no_parameter() -> None:
    """As in a replica of nn.DataParallel, or a parametrized module."""
    norm = make("llama").model.norm
    x = torch.randn(2, 64)
    with torch.no_grad():
        expected = norm(x)
        replica = norm._replicate_for_data_parallel()
        replica.weight = norm.weight.detach()
        torch.testing.assert_close(replica(x), expected)
        nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
        torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["LlamaRMSNorm", "LlamaMLP", "LlamaAttention", "LlamaDecoderLayer"])
def test_a_class_that_somebody_has_patched_is_left_alone(name: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmint8.integrations.transformers.fused.fused_module._classes", {})
    cls = getattr(T.models.llama.modeling_llama, name)
    original, used = cls.forward, []

    def patched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        used.append(name)
        return original(self, *args, **kwargs)

    if when == "before":
        monkeypatch.setattr(cls, "forward", patched)
    model = make("llama")
    if when == "after":
        monkeypatch.setattr(cls, "forward", patched)
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache
        before = len(used)
        model(TOKENS[:, :1], cache=cache)
    assert before == (5 if name == "LlamaRMSNorm" else 2)
    assert len(used) == 2 * before


def test_hooks_on_activations_are_called() -> None:
    model = make("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda module, args, output: output * 0)
    plain = unfuse_copy(model)
    torch.testing.assert_close(run(model, TOKENS[:1, :6]), run(plain, TOKENS[:1, :6]), rtol=1e-4, atol=1e-4)


def test_vmap_goes_through_the_layers() -> None:
    mlp = make("llama").model.layers[0].mlp
    x = torch.randn(3, 2, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(mlp)(x), torch.stack([mlp(row) for row in x]), rtol=1e-4, atol=1e-5)


def test_another_function_under_the_name_of_sdpa_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def mine(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple:
        used.append(query.shape[2])
        return query.transpose(1, 2), None

    model = make("llama")
    monkeypatch.setitem(T.AttentionInterface._global_mapping, "sdpa", mine)
    with torch.no_grad():
        cache = model(TOKENS, use_cache=True).cache
        model(TOKENS[:, :1], cache=cache)
    assert used == [20, 20, 1, 1]


def test_who_asked_for_hidden_states_once_is_as_fast_as_before(calls: list[str]) -> None:
    model = make("llama")
    with torch.no_grad():
        model(TOKENS, output_hidden_states=True)
        cache = model(TOKENS, use_cache=True).cache
        calls.clear()
        model(TOKENS[:, :1], cache=cache)
    assert calls == ["decoder_layer", "decoder_layer", "rms_norm"]


def test_the_first_pass_is_fused(tmp_path: Path) -> None:
    """Also that of an int8 checkpoint, whose loading needs no kernels."""
    make("llama", torch.bfloat16).save_pretrained(tmp_path)
    code = (
        "import llmint8, sys, torch\n"
        "model = llmint8.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    first, second = (model(torch.arange(20)[None]).logits for _ in range(2))\n"
        "assert torch.equal(first, second)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
