"""A checkpoint in the form of bitsandbytes: written, and loaded again without bitsandbytes."""

import json
import tempfile
from pathlib import Path

import llmint8
from llmint8.default_model import default_model

model = llmint8.from_pretrained(default_model(), load_in_8bit=True, threshold=6.0)
with tempfile.TemporaryDirectory() as folder:
    llmint8.save_bitsandbytes(model, folder)
    entry = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    again = llmint8.from_pretrained(folder)
print(f"config.json says {entry['quant_method']}, load_in_8bit={entry['load_in_8bit']}")
print(f"loaded again as {again.model.layers[0].mlp.up_proj}")
