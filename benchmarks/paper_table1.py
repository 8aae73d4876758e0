"""Table 1 of the LLM.int8() paper on a small model, as it is and with the outlier features of a large one planted."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from accuracy import CALIBRATION_TOKENS, Sums, log_probs_of
from harness.results import Cell, Cells, Run, show
from harness.text import tokens_of
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from llmint8 import Int8Config, calibrate, from_pretrained, functional, quantize_
from llmint8.analysis.planted_outliers import plant_outliers
from llmint8.config import PAPER_THRESHOLD
from llmint8.default_model import default_model
from llmint8.nn.forms import int8_form
from llmint8.quantize import int8_layers, layers_to_quantize


@dataclass(frozen=True)
class Quantization:
    """How the paper's table quantizes the inputs and the weight of a linear layer to int8 (sections 2.1 and 3).

    Attributes:
        x_by_row: Each row (token) of the input [M, K] has a scale of its own; else there is one for the tensor.
        w_by_row: Each output feature, a row of the weight [N, K], has a scale of its own; else one for the tensor.
            "Row-wise" in the paper is only `x_by_row`, "vector-wise" is both.
        zeropoint: Asymmetric codes ("zeropoint"), else symmetric ones ("absmax").
        decomposed: Input columns with a feature of at least 6.0, and the weight's columns of that number, stay in
            floating point and count for no scale (mixed-precision decomposition, section 3.2).
    """

    x_by_row: bool = False
    w_by_row: bool = False
    zeropoint: bool = False
    decomposed: bool = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Applies a layer to quantized operands, which are multiplied in fp32 instead of int8.

        Args:
            x: fp32 [..., K].
            weight: fp32 [N, K].
            bias: fp32 [N], or None.

        Returns:
            fp32 [..., N], that of the integer product up to rounding in fp32.
        """
        rows = x.reshape(-1, x.shape[-1])
        outliers = None
        if self.decomposed:
            outliers = functional.select_threshold(functional.outlier_scores(rows), PAPER_THRESHOLD)
        quantized_w = self._quantized(weight, self.w_by_row, outliers)
        return F.linear(self._quantized(rows, self.x_by_row, outliers).view(x.shape), quantized_w, bias)

    def _quantized(self, values: Tensor, by_row: bool, outliers: Tensor | None) -> Tensor:
        """What the int8 codes of a matrix stand for, fp32 of the same shape; outlier columns as they are."""
        kept = values if outliers is None else values.masked_fill(outliers, 0)
        quantize = functional.quantize_zeropoint if self.zeropoint else functional.quantize_rowwise
        result = functional.dequantize(*quantize(kept if by_row else kept.reshape(1, -1))).view(values.shape)
        return result if outliers is None else torch.where(outliers, values, result)


# The rows of Table 1 and the perplexity of the paper's 13B model on C4, 12.45 in fp32; None where it has no such row.
PAPER: dict[str, tuple[Quantization, float | None]] = {
    "absmax": (Quantization(), 19.08),
    "zeropoint": (Quantization(zeropoint=True), 13.94),
    "absmax row-wise": (Quantization(x_by_row=True), 16.49),
    "absmax vector-wise": (Quantization(x_by_row=True, w_by_row=True), 16.48),
    "zeropoint vector-wise": (Quantization(x_by_row=True, w_by_row=True, zeropoint=True), 13.47),
    "absmax + decomposition": (Quantization(decomposed=True), None),
    "zeropoint + decomposition": (Quantization(zeropoint=True, decomposed=True), None),
    "absmax row-wise + decomposition": (Quantization(x_by_row=True, decomposed=True), 12.46),
    "absmax LLM.int8()": (Quantization(x_by_row=True, w_by_row=True, decomposed=True), 12.45),
    "zeropoint LLM.int8()": (Quantization(x_by_row=True, w_by_row=True, zeropoint=True, decomposed=True), 12.45),
}
PAPER_FP32 = 12.45
OURS = {
    "llmint8, default": Int8Config(),
    "llmint8, threshold 6.0, absmax": Int8Config(threshold=PAPER_THRESHOLD, symmetric=True),
    "llmint8, threshold 6.0, zeropoint": Int8Config(threshold=PAPER_THRESHOLD),
    "llmint8, budget 32": Int8Config(budget=32),
    "llmint8, static": Int8Config(mode="static"),
    "llmint8, no outliers": Int8Config(mode="none"),
}


@contextlib.contextmanager
def simulated(model: nn.Module, quantization: Quantization) -> Iterator[None]:
    """Quantizes the inputs and weights of the layers that llmint8 would quantize, for as long as the context lasts."""
    layers = [model.get_submodule(name) for name in layers_to_quantize(model, Int8Config())]

    def forward_of(layer: Any) -> Any:
        form = int8_form(layer)
        assert form is not None  # it is one that can be quantized
        weight = form.as_rows(layer.weight)
        return lambda x: quantization.linear(x, weight, layer.bias)

    for layer in layers:
        layer.forward = forward_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def measure(name: str, model: nn.Module, tokens: Tensor, calibration: Tensor, window: int) -> dict[str, Cells]:
    """Runs every scheme on the same windows of a text, against the same model in fp32.

    Args:
        name: Name of the model, for the columns of the result.
        model: In fp32.
        tokens: int64 [count].
        calibration: Tokens for the static columns, int64 [count].
        window: Tokens of one forward pass.

    Returns:
        A row for each scheme: perplexity, its ratio to that in fp32, and KL divergence in nats per token.
    """
    int8 = calibrate(quantize_(copy.deepcopy(model)), calibration[None].split(window, dim=1))
    sums = {scheme: Sums() for scheme in ("fp32", *PAPER, *OURS)}
    windows = [w for w in tokens.split(window) if len(w) > 1]
    with torch.inference_mode():
        for inputs in track(windows, f"Evaluating the {name} model", disable=len(windows) < 2):
            targets = inputs[1:]
            reference = log_probs_of(model, inputs)
            sums["fp32"].add(reference, reference, targets)
            for scheme, (quantization, _) in PAPER.items():
                with simulated(model, quantization):
                    sums[scheme].add(log_probs_of(model, inputs), reference, targets)
            for scheme, config in OURS.items():
                for _, layer in int8_layers(int8):
                    layer.int8_config = config
                sums[scheme].add(log_probs_of(int8, inputs), reference, targets)
    count = sum(len(w) - 1 for w in windows)
    return {
        scheme: {
            name: Cell(math.exp(total.loss / count), 3),
            f"{name} / fp32": Cell(math.exp((total.loss - sums["fp32"].loss) / count), 3),
            f"{name} KL": Cell(total.divergence / count, 4),
        }
        for scheme, total in sums.items()
    }


def paper_ratio(scheme: str) -> str | Cell:
    """Returns the perplexity of the paper's 13B model over that in fp32, or nothing where Table 1 has no such row."""
    perplexity = PAPER_FP32 if scheme == "fp32" else PAPER.get(scheme, (None, None))[1]
    return "" if perplexity is None else Cell(perplexity / PAPER_FP32, 3)


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a 16-bit checkpoint; SmolLM2-135M by default.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file; Python's language reference by default.")] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens.")] = 4096,
    window: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 512,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Measures the perplexity and the KL divergence to fp32 of each row of the paper's Table 1, and of llmint8.

    The paper's rows keep the weights of outlier columns in floating point; llmint8's own are int8 in all columns. Those
    of planted columns are divided by 20 to 60, so that few of the codes of their rows are left to them.
    """
    transformers.utils.logging.disable_progress_bar()
    run = Run("paper_table1")
    path = model or default_model()
    evaluated, calibration = tokens_of(path, text, tokens + CALIBRATION_TOKENS).split([tokens, CALIBRATION_TOKENS])
    loaded = from_pretrained(path, load_in_8bit=False, dtype=torch.float32)
    plain = measure("plain", loaded, evaluated, calibration, window)
    norms = len(plant_outliers(loaded))
    planted = measure("planted", loaded, evaluated, calibration, window)
    rows: list[Cells] = [{"scheme": s, "paper 13B / fp32": paper_ratio(s), **plain[s], **planted[s]} for s in plain]
    show(f"Perplexity of {path.name}, {tokens} tokens in windows of {window}; outliers planted in {norms} norms", rows)
    run.add_table(rows, model=path.name, setting=f"tokens={tokens} window={window}")
    run.save(output)


if __name__ == "__main__":
    typer.run(main)
