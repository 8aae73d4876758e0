"""Whether columns found once serve for other text: mode "static", calibrated on one kind of text, on four others."""

import argparse
import inspect
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean
from typing import Annotated

import torch
import transformers
import typer
from accuracy import log_probs_of
from harness.results import Cell, Cells, Run, show
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoTokenizer

from llmint8 import Int8Config, Int8Linear, calibrate, from_pretrained, functional
from llmint8.default_model import default_model
from llmint8.quantize import int8_layers

TEXTS = Path(__file__).parent / "texts"
SCHEMES = {"static": Int8Config(mode="static"), "budget": Int8Config(), "none": Int8Config(mode="none")}
REFERENCE = "language reference"


def texts() -> dict[str, str]:
    """Returns texts by kind: the one that is calibrated on, Python's language reference, and others."""
    files = {file.stem: file.read_text(encoding="utf-8") for file in sorted(TEXTS.glob("*.txt"))}
    return {REFERENCE: "\n".join(topics[name] for name in sorted(topics)), "code": inspect.getsource(argparse), **files}


def tokens_of(path: Path, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the tokens for calibration and those of each text that is evaluated, int64 [count] each.

    Of the language reference, the first tokens are for calibration and the last ones are evaluated.

    Args:
        path: Folder of a checkpoint with a tokenizer.
        count: Number of tokens.

    Raises:
        typer.BadParameter: A text is too short.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=1 << 30)  # the texts are cut into windows later
    tokens = {name: tokenizer(text, return_tensors="pt")["input_ids"][0] for name, text in texts().items()}
    for name, found in tokens.items():
        if len(found) < (needed := 2 * count if name == REFERENCE else count):
            raise typer.BadParameter(f"{name} has {len(found)} tokens, {needed} are asked for")
    calibration = tokens[REFERENCE][:count]
    tokens[REFERENCE] = tokens[REFERENCE][-count:]
    return calibration, {name: found[:count] for name, found in tokens.items()}


def divergences(model: nn.Module, reference_model: nn.Module, windows: list[Tensor]) -> dict[str, float]:
    """Returns the mean KL divergence to fp32, in nats per token, of each scheme on the same windows of a text."""
    sums = dict.fromkeys(SCHEMES, 0.0)
    with torch.inference_mode():
        for inputs in windows:
            reference = log_probs_of(reference_model, inputs)
            for name, config in SCHEMES.items():
                use(model, config)
                sums[name] += (reference.exp() * (reference - log_probs_of(model, inputs))).sum().item()
    count = sum(len(inputs) - 1 for inputs in windows)
    return {name: total / count for name, total in sums.items()}


def found_again(model: nn.Module, windows: list[Tensor]) -> dict[str, float]:
    """Returns the share of each layer's static columns that a text would choose, too: by name of the layer.

    The text chooses as many as there are, those with the largest mean score over the windows, as `calibrate` does.
    """
    layers = {name: layer for name, layer in int8_layers(model) if columns_of(layer)}
    scores: dict[nn.Module, Tensor] = {}

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Int8Linear)
        rows = inputs[0].reshape(-1, layer.in_features)
        scores[layer] = scores.get(layer, 0.0) + functional.outlier_scores(rows, relative=True)

    use(model, SCHEMES["budget"])  # as calibration found the model
    hooks = [layer.register_forward_pre_hook(observe) for layer in layers.values()]
    with torch.inference_mode():
        for inputs in windows:
            model(inputs[None])
    for hook in hooks:
        hook.remove()
    shares = {}
    for name, layer in layers.items():
        columns = columns_of(layer)
        chosen = set(functional.largest_columns(scores[layer], len(columns)).tolist())
        shares[name] = len(columns & chosen) / len(columns)
    return shares


def use(model: nn.Module, config: Int8Config) -> None:
    """Gives all layers the same settings."""
    for _, layer in int8_layers(model):
        layer.int8_config = config


def columns_of(layer: Int8Linear) -> set[int]:
    """Returns the static columns of a calibrated layer."""
    assert layer.outlier_columns is not None
    return set(layer.outlier_columns.tolist())


def persistence(model: nn.Module, shares: dict[str, dict[str, float]]) -> list[Cells]:
    """Returns a row for each kind of layer: its columns, what chance would find again of them, and what texts do.

    Args:
        model: Calibrated.
        shares: By text, then by layer.
    """
    kinds: dict[str, list[tuple[str, Int8Linear]]] = defaultdict(list)
    for name, layer in int8_layers(model):
        kinds[name.rpartition(".")[2]].append((name, layer))
    rows = []
    for kind, layers in kinds.items():
        with_columns = [(name, layer) for name, layer in layers if columns_of(layer)]
        row: Cells = {
            "layers": kind,
            "with columns": f"{len(with_columns)} of {len(layers)}",
            "columns, mean": Cell(fmean(len(columns_of(layer)) for _, layer in layers), 1),
        }
        by_chance = [len(columns_of(layer)) / layer.in_features for _, layer in with_columns]
        row["by chance"] = _percent(by_chance)
        rows.append(row | {text: _percent([found[name] for name, _ in with_columns]) for text, found in shares.items()})
    return rows


def _percent(values: list[float]) -> str | Cell:
    return Cell(fmean(values), 0, "%") if values else "-"


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a 16-bit checkpoint; SmolLM2-135M by default.")] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each text.")] = 2048,
    window: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 512,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
) -> None:
    """Measures what mode "static" loses on text that it was not calibrated on, and how many of its columns return."""
    transformers.utils.logging.disable_progress_bar()
    runs = Run("static_columns"), Run("static_columns_found_again")
    path = model or default_model()
    calibration, evaluated = tokens_of(path, tokens)
    int8 = calibrate(from_pretrained(path, dtype=torch.float32), calibration[None].split(window, dim=1))
    fp32 = from_pretrained(path, load_in_8bit=False, dtype=torch.float32)
    rows: list[Cells] = []
    shares: dict[str, dict[str, float]] = {}
    for name, text in track(evaluated.items(), "Evaluating"):
        windows = [part for part in text.split(window) if len(part) > 1]
        kl = divergences(int8, fp32, windows)
        shares[name] = found_again(int8, windows)
        rows.append(
            {"text": name}
            | {f"KL {scheme}": Cell(value, 5) for scheme, value in kl.items()}
            | {"static / budget": Cell(kl["static"] / kl["budget"], 2)}
        )
    show(f"{path.name}: KL divergence to fp32, {tokens} tokens a text; calibrated on the {REFERENCE}", rows)
    again = persistence(int8, shares)
    show("Static columns that each text would choose, too (mean over the layers that have any)", again)
    for run, table in zip(runs, (rows, again), strict=True):
        run.add_table(table, model=path.name, setting=f"tokens={tokens} window={window}")
        run.save(output)


if __name__ == "__main__":
    typer.run(main)
