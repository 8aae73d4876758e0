"""How far 8 bit is from fp32: perplexity, KL divergence and top-1 agreement, every mode beside bitsandbytes."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from harness.results import Cell, Cells, Run, show
from harness.text import tokens_of
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmint8 import Int8Config, calibrate, from_pretrained
from llmint8.default_model import default_model
from llmint8.quantize import int8_layers

SCHEMES = {
    "int8 x int8, no outliers": Int8Config(mode="none", symmetric=True),
    "threshold 6.0 (paper)": Int8Config(threshold=6.0, symmetric=True),
    "threshold 6.0, asymmetric": Int8Config(threshold=6.0),
    "threshold 2.0": Int8Config(threshold=2.0, symmetric=True),
    "budget 16": Int8Config(budget=16, relative=False, symmetric=True),
    "budget 32": Int8Config(budget=32, relative=False, symmetric=True),
    "budget 64": Int8Config(budget=64, relative=False, symmetric=True),
    "budget 32, relative, asymmetric": Int8Config(budget=32, threshold=0.0),
    "budget 1/16, 5 x rms, asymmetric": Int8Config(budget=1 / 16),
    "budget 1/8, 5 x rms, asymmetric (default)": Int8Config(),
    "budget 1/4, 5 x rms, asymmetric": Int8Config(budget=1 / 4),
    "static, calibrated as the default": Int8Config(mode="static"),
    "threshold 8 x rms, asymmetric": Int8Config(threshold=8.0, relative=True),
    "threshold 6 x rms, asymmetric": Int8Config(threshold=6.0, relative=True),
    "weights only (decode regime)": Int8Config(budget=1 << 20, threshold=0.0),  # every column in floating point
}
REFERENCE = "reference"  # the text by default
CALIBRATION_TOKENS = 2048  # those that follow the evaluated ones


@dataclass
class Sums:
    """Sums over tokens: negative log likelihood, KL divergence to fp32, and top-1 agreement with it."""

    loss: float = 0.0
    divergence: float = 0.0
    agreement: int = 0

    def add(self, log_probs: Tensor, reference: Tensor, targets: Tensor) -> None:
        """Adds the tokens of a window; log probabilities are [tokens, vocabulary], targets [tokens]."""
        self.loss -= log_probs.gather(1, targets[:, None]).sum().item()
        self.divergence += (reference.exp() * (reference - log_probs)).sum().item()
        self.agreement += int((log_probs.argmax(-1) == reference.argmax(-1)).sum())


def measure(path: Path, tokens: Tensor, calibration: Tensor, window: int, peer: bool) -> list[Cells]:
    """Runs every scheme on the same windows of a text.

    Args:
        path: Folder of a 16-bit checkpoint.
        tokens: int64 [count].
        calibration: Tokens for the static columns, int64 [count].
        window: Tokens of one forward pass.
        peer: Whether bitsandbytes runs too.
    """
    model = calibrate(from_pretrained(path, dtype=torch.float32), calibration[None].split(window, dim=1))
    reference_model = from_pretrained(path, load_in_8bit=False, dtype=torch.float32)
    theirs: Any = None
    if peer:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        theirs = AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization, dtype=torch.float32)
    names = ["fp32", *SCHEMES, *(["bitsandbytes, threshold 6.0"] if peer else [])]
    sums = {name: Sums() for name in names}
    windows = [w for w in tokens.split(window) if len(w) > 1]
    with torch.inference_mode():
        for inputs in track(windows, "Evaluating", disable=len(windows) < 2):
            targets = inputs[1:]
            reference = log_probs_of(reference_model, inputs)
            sums["fp32"].add(reference, reference, targets)
            for name, config in SCHEMES.items():
                for _, layer in int8_layers(model):
                    layer.int8_config = config
                sums[name].add(log_probs_of(model, inputs), reference, targets)
            if peer:
                sums[names[-1]].add(log_probs_of(theirs, inputs), reference, targets)
    count = sum(len(w) - 1 for w in windows)
    return [
        {
            "scheme": name,
            "perplexity": Cell(math.exp(total.loss / count), 3),
            "KL to fp32": Cell(total.divergence / count, 5),
            "top-1 agreement": Cell(total.agreement / count, 1, "%"),
        }
        for name, total in sums.items()
    ]


def log_probs_of(model: Any, inputs: Tensor) -> Tensor:
    """Returns the log probabilities of each next token but the last, fp32 [tokens - 1, vocabulary]."""
    return model(inputs[None]).logits[0, :-1].float().log_softmax(-1)


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a 16-bit checkpoint; SmolLM2-135M by default.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file; Python's language reference by default.")] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens.")] = 7168,
    window: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 512,
    bitsandbytes: Annotated[bool, typer.Option(help="Measure bitsandbytes too.")] = True,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Measures accuracy in the prefill regime, where activations are quantized too."""
    transformers.utils.logging.disable_progress_bar()
    run = Run("accuracy")
    path = model or default_model()
    try:
        found = tokens_of(path, text, tokens + CALIBRATION_TOKENS)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    evaluated, calibration = found.split([tokens, CALIBRATION_TOKENS])
    rows = measure(path, evaluated, calibration, window, bitsandbytes)
    show(f"{path.name}, {tokens} tokens in windows of {window}, against fp32", rows)
    run.add_table(
        rows, model=path.name, setting=f"tokens={tokens} window={window} text={text.name if text else REFERENCE}"
    )
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
