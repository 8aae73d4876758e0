"""Tries whether a model decodes sequences together as each alone, and reads a prompt in pieces as it does at once.

Its configuration does not tell.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from llmint8.generation import ragged_batch

# The longer prompt passes a sliding window of fewer tokens.
_LENGTHS = (3, 64)
_STEPS = 3
# So few that int8 layers quantize neither: how they do that depends on all rows there are.
_PIECES = (3, 4)


def find_fault(model: Any, cache_name: str) -> str | None:
    """Decodes two sequences of different lengths, each alone and both together.

    Args:
        model: A transformers model, for which `ragged_batch.can_batch` and `ragged_batch.enable` have been called.
        cache_name: Name of the argument that takes the cache.

    Returns:
        Why they cannot be decoded together; None if they can.
    """
    config = model.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None) or max(_LENGTHS) + _STEPS
    lengths = [max(1, min(length, context - _STEPS)) for length in _LENGTHS]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(config.vocab_size, (1, n), generator=generator).to(model.device) for n in lengths]
    steps = torch.randint(config.vocab_size, (_STEPS, 2, 1), generator=generator).to(model.device)

    with torch.inference_mode():
        caches = [DynamicCache(config=config) for _ in prompts]
        for prompt, cache in zip(prompts, caches, strict=True):
            model(input_ids=prompt, use_cache=True, **{cache_name: cache})
        copies = copy.deepcopy(caches)
        alone = [  # positions are the model's own affair
            [
                model(input_ids=tokens[i : i + 1], use_cache=True, **{cache_name: cache}).logits[0, -1]
                for tokens in steps
            ]
            for i, cache in enumerate(caches)
        ]
        try:
            together = []
            for step, tokens in enumerate(steps):
                positions = torch.tensor([[length + step] for length in lengths], device=model.device)
                cache = ragged_batch.RaggedCache(copies)
                logits = model(input_ids=tokens, position_ids=positions, use_cache=True, **{cache_name: cache}).logits
                together.append(logits[:, -1])
        except Exception as error:  # whatever a model does to what it takes for a tensor
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for i, rows in enumerate(alone):
        if any(not _is_close(row, logits[i]) for row, logits in zip(rows, together, strict=True)):
            return "it gives other answers together than alone"
    return None


def reads_pieces(model: Any, cache_name: str) -> bool:
    """Reads a prompt at once and in pieces, and tells whether the end is the same.

    Args:
        model: A transformers model, for which `find_fault` has found none.
        cache_name: Name of the argument that takes the cache.
    """
    config = model.config.get_text_config(decoder=True)
    first, length = _PIECES[0], sum(_PIECES)
    context = getattr(config, "max_position_embeddings", None)
    if not ragged_batch.can_read_pieces(model) or (context is not None and context < length):
        return False
    prompt = torch.arange(1, 1 + length, device=model.device)[None] % config.vocab_size
    positions = torch.arange(first, length, device=model.device)[None]
    with torch.inference_mode():
        whole = model(input_ids=prompt, use_cache=True, **{cache_name: DynamicCache(config=config)}).logits[0, -1]
        cache = DynamicCache(config=config)
        model(input_ids=prompt[:, :first], use_cache=True, **{cache_name: cache})
        rest: dict[str, Any] = {cache_name: ragged_batch.RaggedCache([cache]), "position_ids": positions}
        try:
            found = model(input_ids=prompt[:, first:], use_cache=True, **rest).logits[0, -1]
        except Exception:  # whatever a model does to what it takes for a tensor
            return False
    return _is_close(whole, found)


def _is_close(expected: Tensor, found: Tensor) -> bool:
    """Whether logits differ by rounding only: over the layers, it grows to the square root of a unit at most."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    known = expected.isfinite()  # a vocabulary may be filled up with what is never said
    expected, found = expected[known].float(), found[known].float()
    return bool((found - expected).norm() <= tolerance * (expected - expected.mean()).norm())
