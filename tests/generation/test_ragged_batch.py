"""Sequences of different lengths in one step have what they have alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

import llmint8
from llmint8.generation import probe, ragged_batch

LENGTHS = (5, 17, 9, 1)
SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "mistral":
        config: Any = transformers.MistralConfig(**SIZES, sliding_window=8)
        return transformers.MistralForCausalLM(config).eval()
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4)
        ).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def _uncommon(kind: str) -> Any:
    """Models that look at what `update` returns, and those that count positions in ways of their own."""
    torch.manual_seed(0)
    if kind == "falcon":
        config: Any = transformers.FalconConfig(
            vocab_size=160, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        model: Any = transformers.FalconForCausalLM(config)
    elif kind == "deepseek":
        config = transformers.DeepseekV3Config(
            **SIZES | {"num_key_value_heads": 4},
            moe_intermediate_size=32,
            n_routed_experts=8,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=16,
            qk_nope_head_dim=16,
            v_head_dim=16,
        )
        model = transformers.DeepseekV3ForCausalLM(config)
    elif kind == "bart":
        config = transformers.BartConfig(
            vocab_size=160,
            d_model=64,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            is_decoder=True,
            is_encoder_decoder=False,
        )
        model = transformers.BartForCausalLM(config)
    else:
        config = transformers.RobertaConfig(**SIZES, is_decoder=True)
        model = transformers.RobertaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model.eval()


def _prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 160, (1, length), generator=generator) for length in LENGTHS]


def _alone(model: Any, prompt: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """The logits of each step when one sequence is decoded greedily."""
    cache, tokens, found = DynamicCache(config=model.config), prompt, []
    for _ in range(steps):
        logits = model(input_ids=tokens, cache=cache, use_cache=True).logits[:, -1]
        found.append(logits[0])
        tokens = logits.argmax(-1, keepdim=True)
    return found


def _together(model: Any, prompts: list[torch.Tensor], steps: int) -> list[list[torch.Tensor]]:
    caches = [DynamicCache(config=model.config) for _ in prompts]
    logits = [
        model(input_ids=prompt, cache=cache, use_cache=True).logits[0, -1]
        for prompt, cache in zip(prompts, caches, strict=True)
    ]
    found = [[row] for row in logits]
    for step in range(steps - 1):
        tokens = torch.stack([rows[-1].argmax() for rows in found])[:, None]
        positions = torch.tensor([[prompt.shape[1] + step] for prompt in prompts])
        cache = ragged_batch.RaggedCache(caches)
        rows = model(input_ids=tokens, position_ids=positions, cache=cache, use_cache=True).logits[:, -1]
        for sequence, row in zip(found, rows, strict=True):
            sequence.append(row)
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("int8", [False, True])
def test_logits_are_those_of_each_alone(kind: str, int8: bool) -> None:
    """Sums over up to 96 features of size 1 in fp32 differ by less than 96 x 2^-24 each, over two layers: 1e-4."""
    model = _model(kind)
    if int8:
        llmint8.quantize_(model)
    ragged_batch.enable()
    assert ragged_batch.can_batch(model)
    with torch.inference_mode():
        together = _together(model, _prompts(), 12)
        for prompt, rows in zip(_prompts(), together, strict=True):
            torch.testing.assert_close(torch.stack(rows), torch.stack(_alone(model, prompt, 12)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_in_pieces_is_what_it_is_at_once(kind: str, int8: bool) -> None:
    """Within what rounding makes of it, as above; pieces are small enough not to be quantized."""
    model = _model(kind)
    if int8:
        llmint8.quantize_(model)
    ragged_batch.enable()
    prompt = torch.randint(0, 160, (1, 8), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(input_ids=prompt).logits
        cache, found = DynamicCache(config=model.config), []
        for first, last in ((0, 3), (3, 4), (4, 8)):
            options: Any = {"cache": cache if first == 0 else ragged_batch.RaggedCache([cache])}
            positions = torch.arange(first, last)[None]
            found.append(model(input_ids=prompt[:, first:last], position_ids=positions, **options).logits)
        torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=1e-4)
        assert cache.get_seq_length() == 8


def test_int8_models_have_the_same_bits(smollm2: Path) -> None:
    model = llmint8.from_pretrained(smollm2)
    ragged_batch.enable()
    with torch.inference_mode():
        for prompt, rows in zip(_prompts(), _together(model, _prompts(), 6), strict=True):
            assert torch.equal(torch.stack(rows), torch.stack(_alone(model, prompt, 6)))


def test_models_with_another_attention_or_state_are_decoded_alone() -> None:
    eager = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, attn_implementation="eager"))
    assert not ragged_batch.can_batch(eager)
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=160, hidden_size=32, num_hidden_layers=1))
    assert not ragged_batch.can_batch(mamba)


def test_chunked_attention_is_decoded_alone() -> None:
    config = transformers.Llama4TextConfig(
        **SIZES, head_dim=16, intermediate_size_mlp=96, num_local_experts=2, attention_chunk_size=8
    )
    assert not ragged_batch.can_batch(transformers.Llama4ForCausalLM(config))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_longest_sequence_are_decoded_alone(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    assert ragged_batch.can_batch(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)))
    assert not ragged_batch.can_batch(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_parameters=rope))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probe_finds_what_a_configuration_does_not_tell(dtype: torch.dtype) -> None:
    ragged_batch.enable()
    for kind in ("falcon", "deepseek", "bart", "roberta"):
        model = _uncommon(kind).to(dtype)
        assert ragged_batch.can_batch(model)
        assert probe.find_fault(model, "cache"), kind
    for kind in ("llama", "mistral", "gpt2"):
        model = _model(kind).to(dtype)
        assert probe.find_fault(model, "cache") is None, kind
        assert probe.reads_pieces(model, "cache") == (kind != "mistral")  # which forgets what left its window
        llmint8.quantize_(model)
        assert probe.reads_pieces(model, "cache") == (kind != "mistral")


def test_a_model_that_does_not_see_the_past_reads_no_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ragged_batch.enable()
    model = _model("llama")
    monkeypatch.setattr("llmint8.ops.causal_mask", lambda query, keys: torch.eye(query.shape[2], keys).bool())
    assert not probe.reads_pieces(model, "cache")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_step_can_be_taken_back(kind: str) -> None:
    model = _model(kind)
    ragged_batch.enable()
    with torch.inference_mode():
        caches = [DynamicCache(config=model.config) for _ in LENGTHS]
        for prompt, cache in zip(_prompts(), caches, strict=True):
            model(input_ids=prompt, cache=cache, use_cache=True)

        def step() -> torch.Tensor:
            positions = torch.tensor([[length] for length in LENGTHS])
            tokens, cache = torch.full((4, 1), 7), ragged_batch.RaggedCache(caches)
            return model(input_ids=tokens, position_ids=positions, cache=cache, use_cache=True).logits

        saved = [ragged_batch.save(cache) for cache in caches]
        first = step()
        for cache, state, length in zip(caches, saved, LENGTHS, strict=True):
            ragged_batch.restore(cache, state, length)
        assert [cache.get_seq_length() for cache in caches] == list(LENGTHS)
        assert torch.equal(step(), first)
