"""Cache and workspace: the cache of models that really run, and what they are made of."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._pytree import tree_leaves
from transformers.models.llama.modeling_llama import LlamaAttention

import llmint8
from llmint8.estimation import run as run_module

SIZES = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
CONFIGS: dict[str, Callable[[], Any]] = {
    "grouped heads": lambda: transformers.LlamaConfig(**SIZES, num_hidden_layers=5, num_key_value_heads=2),
    "one key head": lambda: transformers.FalconConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=3, num_attention_heads=4
    ),
    "every head": lambda: transformers.GPT2Config(vocab_size=160, n_embd=64, n_layer=3, n_head=4),
    "depth of its own": lambda: transformers.Qwen3Config(
        **SIZES, num_hidden_layers=3, num_key_value_heads=2, head_dim=32
    ),
    "some windows": lambda: transformers.Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=7,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        layer_types=[*["sliding_attention"] * 2, "full_attention"] * 2 + ["sliding_attention"],
    ),
    "only windows": lambda: transformers.MistralConfig(
        **SIZES, num_hidden_layers=3, num_key_value_heads=2, sliding_window=8
    ),
    "latent attention, dense then experts": lambda: transformers.DeepseekV3Config(
        **SIZES,
        num_hidden_layers=4,
        num_key_value_heads=4,
        first_k_dense_replace=2,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    "experts": lambda: transformers.MixtralConfig(
        **SIZES, num_hidden_layers=3, num_key_value_heads=2, num_local_experts=4
    ),
    "encoder and decoder": lambda: transformers.T5Config(
        vocab_size=160, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_decoder_layers=4, num_heads=4
    ),
    "encoder": lambda: transformers.BertConfig(**SIZES, num_hidden_layers=3),
    "states": lambda: transformers.MambaConfig(vocab_size=160, hidden_size=64, num_hidden_layers=3),
}
MODELS = {"encoder": "BertForMaskedLM", "encoder and decoder": "T5ForConditionalGeneration"}


def save_config(config: Any, folder: Path) -> Path:
    config.dtype = torch.bfloat16
    if hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = min(config.max_position_embeddings, 4096)  # fewer contexts are tried
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.save_pretrained(folder)
    return folder / "config.json"


def build(name: str, config: Any) -> Any:
    auto = getattr(transformers, MODELS.get(name, "AutoModelForCausalLM"))
    torch.manual_seed(0)
    return (auto._from_config if name in MODELS else auto.from_config)(config, dtype=torch.bfloat16).eval()


def cache_bytes(cache: Any) -> int:
    """What a filled cache of transformers keeps, but for scalars, which are the lengths of windows."""
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
    tensors = tree_leaves([list(vars(layer).values()) for part in parts for layer in part.layers])
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.dim() > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_is_that_of_a_model_that_has_run(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]()
    file = save_config(config, tmp_path)
    batch, context = 3, 20
    estimate = llmint8.estimate(file, context=context, batch=batch, auto_class=MODELS.get(name, "AutoModelForCausalLM"))
    tokens = torch.zeros(batch, context, dtype=torch.long)
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens} if config.is_encoder_decoder else {"input_ids": tokens}
    with torch.no_grad():
        output = build(name, config)(**inputs)
    cache = next((output[key] for key in ("cache", "past_key_values", "cache_params") if output.get(key)), None)
    expected = 0 if cache is None else cache_bytes(cache)
    assert estimate.int8.kv_cache == estimate.unquantized.kv_cache == expected
    assert (expected == 0) == (name == "encoder")
    assert estimate.int8.workspace > 0


def test_a_cache_by_hand(tmp_path: Path) -> None:
    file = save_config(CONFIGS["grouped heads"](), tmp_path)
    estimate = llmint8.estimate(file, context=100, batch=2)
    assert estimate.int8.kv_cache == 2 * 100 * 5 * 2 * (2 * 16) * 2  # batch, tokens, layers, k and v, heads, bytes
    assert llmint8.estimate(file, context=100, batch=2, dtype="float32").int8.kv_cache == 2 * estimate.int8.kv_cache


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouped heads", "some windows", "latent attention, dense then experts", "experts"])
def test_the_first_layers_stand_for_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_config(CONFIGS[name](), tmp_path)
    short = llmint8.estimate(file, context=50)
    monkeypatch.setattr(run_module, "_kinds", lambda stack, config: list(range(len(stack))))  # every layer is run
    whole = llmint8.estimate(file, context=50)
    for a, b in ((short.int8, whole.int8), (short.unquantized, whole.unquantized)):
        assert a.kv_cache == b.kv_cache
        assert a.workspace == pytest.approx(b.workspace, rel=1e-3)  # a window's length is a scalar for each layer


def test_the_workspace_by_hand(tmp_path: Path) -> None:
    """Of a Llama in 16 bit, the most is there when `silu(gate) * up` is made.

    Then there are the embeddings, what the layer before gave, the residual and the normed hidden states (4 x H), the
    two factors and their product (3 x I). Angles of the rotary embedding and positions come on top: 2 %.
    """
    config = transformers.LlamaConfig(
        vocab_size=160, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8
    )
    workspace = llmint8.estimate(save_config(config, tmp_path), context=1000).unquantized.workspace
    by_hand = 2 * 1000 * (3 * 2048 + 4 * 512)
    assert by_hand <= workspace <= 1.02 * by_hand


@pytest.mark.skipif(
    "cache" not in inspect.signature(LlamaAttention.forward).parameters,
    reason="attention is not fused with this transformers",
)
def test_a_cpu_keeps_room_for_more_tokens(tmp_path: Path) -> None:
    """On a CPU the cache of an int8 Llama moves to a buffer half as large again at the first token after a prompt."""
    config = CONFIGS["grouped heads"]()
    config.intermediate_size, config.num_hidden_layers = 16, 40
    estimate = llmint8.estimate(save_config(config, tmp_path), context=2000, device="cpu")
    assert estimate.int8.workspace >= estimate.int8.kv_cache // 2 > estimate.unquantized.workspace


def test_what_a_model_needs_besides_tokens_is_not_known(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        vocab_size=160,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    config.save_pretrained(tmp_path)
    estimate = llmint8.estimate(tmp_path, auto_class="WhisperForConditionalGeneration")
    assert estimate.int8.kv_cache is estimate.int8.workspace is None
    assert estimate.int8.total == estimate.int8.weights.total > 0
    assert all(fit.int8_context is None for fit in estimate.cards)
    assert any("input_features" in note for note in estimate.notes)


def test_memory_grows_with_context_and_batch(tmp_path: Path) -> None:
    file = save_config(CONFIGS["grouped heads"](), tmp_path)
    totals = [llmint8.estimate(file, context=c, batch=b).int8.total for c, b in ((64, 1), (128, 1), (128, 2), (512, 4))]
    assert totals == sorted(set(totals))


def test_a_long_context_is_noted(tmp_path: Path) -> None:
    config = CONFIGS["grouped heads"]()
    config.max_position_embeddings = 256
    file = save_config(config, tmp_path)
    assert llmint8.estimate(file).context == 256
    estimate = llmint8.estimate(file, context=1000)
    assert any("beyond the 256 positions" in note for note in estimate.notes)
    assert all(fit.int8_context == 256 for fit in estimate.cards)


def test_json_has_every_figure(tmp_path: Path) -> None:
    estimate = llmint8.estimate(save_config(CONFIGS["grouped heads"](), tmp_path))
    result = estimate.to_dict()
    assert set(result) == {field.name for field in dataclasses.fields(estimate)}
    assert result["int8"]["total"] == estimate.int8.total
    assert result["int8"]["weights"]["total"] == estimate.int8.weights.total
    assert result["cards"][0]["card"]["usable"] == estimate.cards[0].card.usable
