"""Outlier columns found once, on sample texts, and kept in the checkpoint."""

import tempfile
from pydoc_data.topics import topics

from transformers import AutoTokenizer

import llmint8
from llmint8.analysis import compare, text_windows
from llmint8.default_model import default_model

path = default_model()  # any folder, or a name on the Hugging Face hub
tokenizer = AutoTokenizer.from_pretrained(path)
# Half to calibrate on, half to look at the result. Texts should be like those that the model will read.
windows = text_windows(tokenizer, "\n".join(topics.values()), window=256, tokens=2048)
model = llmint8.from_pretrained(path, load_in_8bit=True)
llmint8.calibrate(model, [window[None] for window in windows[:4]])
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    model = llmint8.from_pretrained(folder)  # the columns come with it
layer = model.model.layers[0].self_attn.q_proj
print(f"{layer}\nthe first of its columns in floating point: {layer.outlier_columns[:8].tolist()}")
reference = llmint8.from_pretrained(path, load_in_8bit=False)
result = compare(model, reference, windows[4:])
print(f"perplexity {result.reference_perplexity:.3f} -> {result.perplexity:.3f}, KL {result.kl:.4f}")
