"""Sequences of different lengths in one step have what they have alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

import llmint8
from llmint8.serving import ragged_batch

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
