"""The checkpoints that the benchmarks run on, made once in the user's cache."""

import shutil
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from llmint8.cache import cache_folder

CONFIG_1B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "tie_word_embeddings": False,
}


def random_llama_1b() -> Path:
    """Returns the folder of a Llama of 1.1 billion random weights, bf16, in 5 shards (2.3 GB)."""
    folder = cache_folder() / "random-llama-1.1b"
    if (folder / "config.json").exists():
        return folder
    with Console(stderr=True).status("Making a Llama of 1.1 billion random weights"):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG_1B), dtype=torch.bfloat16)
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished, max_shard_size="500MB")
        unfinished.rename(folder)
    return folder


def checkpoint_bytes(folder: Path) -> int:
    """Returns the size of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
