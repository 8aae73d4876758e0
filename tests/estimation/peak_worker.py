"""Loads a model and generates with it, and prints the memory that this took; run by `test_peak.py`."""

import ctypes
import gc
import itertools
import json
import sys
import time
from pathlib import Path

import torch
import transformers

import llmint8

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness.memory import Peak, anonymous_bytes


def generate(model: transformers.PreTrainedModel, batch: int, context: int) -> None:
    tokens = torch.randint(0, 160, (batch, context))
    options = {"min_new_tokens": 2, "max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)


def mapped_bytes(model: transformers.PreTrainedModel) -> int:
    """Weights that lie in a mapped file, which are not anonymous."""
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[-1].endswith(".safetensors"):
            spans.append([int(address, 16) for address in fields[0].split("-")])
    tensors = {t.data_ptr(): t.nbytes for t in itertools.chain(model.parameters(), model.buffers())}
    return sum(size for start, size in tensors.items() if any(a <= start < b for a, b in spans))


def main(folder: str, bits: str, *shapes: str) -> None:
    # Threads, kernels and what is imported late are there before anything is measured.
    sizes = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    tiny = transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(**sizes, num_attention_heads=4), dtype=torch.bfloat16
    ).eval()
    generate(llmint8.quantize_(tiny) if bits == "8" else tiny, 2, 64)
    before = anonymous_bytes()
    model = llmint8.from_pretrained(folder, load_in_8bit=bits == "8")
    mapped = mapped_bytes(model)
    peaks = {}
    for shape in shapes:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading or the run before has left
        peak = Peak()
        generate(model, *map(int, shape.split("x")))
        time.sleep(0.01)
        peaks[shape] = peak.stop()["peak anonymous"] - before + mapped
    print(json.dumps(peaks))


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    main(*sys.argv[1:])
