"""The checkpoints that the benchmarks run on, made once in the user's cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from llmint8.default_model import default_model
from llmint8.runtime.user_cache import cache_folder

# Llamas of random weights, by billions of parameters: hidden and intermediate size, layers, heads, heads of keys.
SIZES = {
    "0.1b": (768, 2048, 12, 12, 4),
    "0.3b": (1024, 2816, 24, 16, 4),
    "1.1b": (2048, 5632, 22, 32, 4),
    "3b": (3072, 8192, 28, 24, 8),
}


def random_llama(size: str) -> Path:
    """Returns the folder of a Llama of random weights, bf16, in shards of 500 MB.

    Args:
        size: One of `SIZES`.
    """
    folder = cache_folder() / f"random-llama-{size}"
    if (folder / "config.json").exists():
        return folder
    hidden, intermediate, layers, heads, key_heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=49152,
        tie_word_embeddings=False,
    )
    with Console(stderr=True).status(f"Making a Llama of {size} random weights"):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished, max_shard_size="500MB")
        unfinished.rename(folder)
    return folder


def products(name: str) -> int | None:
    """Returns the multiplications of a token in the layers of a random Llama, its head and its attention left out.

    Args:
        name: Name of its folder; None is known of others.
    """
    size = SIZES.get(name.removeprefix("random-llama-"))
    if size is None:
        return None
    hidden, intermediate, layers, heads, key_heads = size
    return layers * hidden * (2 * hidden + 2 * hidden * key_heads // heads + 3 * intermediate)


MODELS: dict[str, Callable[[], Path]] = {
    "smollm2": default_model,
    **{size: lambda size=size: random_llama(size) for size in SIZES},  # type: ignore[misc]
}


def checkpoint(name: str) -> Path:
    """Returns the folder of a model: one of `MODELS`, or a folder.

    Raises:
        ValueError: It is neither.
    """
    if name in MODELS:
        return MODELS[name]()
    if (Path(name) / "config.json").is_file():
        return Path(name)
    raise ValueError(f"{name!r} is no folder of a checkpoint and none of {', '.join(MODELS)}")


def has_trained_weights(name: str) -> bool:
    """Whether a text means anything to a model, so that its perplexity does."""
    return name not in SIZES
