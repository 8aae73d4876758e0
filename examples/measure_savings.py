"""What 8 bit saves of a model: memory and disk, beside what it costs in accuracy."""

import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from transformers import AutoTokenizer

import llmint8
from llmint8.analysis import compare, text_windows
from llmint8.default_model import default_model


def megabytes(folder: Path) -> float:
    """Returns the size of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


path = default_model()  # any folder
before = llmint8.from_pretrained(path, load_in_8bit=False)
after = llmint8.from_pretrained(path, load_in_8bit=True)
windows = text_windows(AutoTokenizer.from_pretrained(path), "\n".join(topics.values()), window=256, tokens=1024)
result = compare(after, before, windows)
with tempfile.TemporaryDirectory() as folder:
    after.save_pretrained(folder)
    sizes = megabytes(path), megabytes(Path(folder))
memory = before.get_memory_footprint() / 1e6, after.get_memory_footprint() / 1e6
print(f"memory {memory[0]:.0f} MB -> {memory[1]:.0f} MB ({memory[1] / memory[0]:.2f}x)")
print(f"disk   {sizes[0]:.0f} MB -> {sizes[1]:.0f} MB ({sizes[1] / sizes[0]:.2f}x)")
print(f"perplexity {result.reference_perplexity:.3f} -> {result.perplexity:.3f}, KL {result.kl:.4f}")
