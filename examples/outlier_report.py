"""Where the outliers of the default model are, and what 8 bit does to each layer: two tables and two plots."""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import transformers
from rich.console import Console
from transformers import AutoTokenizer

import llmint8
from llmint8.analysis import compare, layer_errors, outlier_report, plot_layer_errors, plot_outliers, text_windows
from llmint8.default_model import default_model


def main(folder: Path) -> None:
    """Prints the tables and writes the plots into a folder."""
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    path = default_model()
    reference = llmint8.from_pretrained(path, load_in_8bit=False)
    model = llmint8.from_pretrained(path, load_in_8bit=True)
    text = "\n".join(topics[name] for name in sorted(topics))  # Python's language reference
    windows = text_windows(AutoTokenizer.from_pretrained(path), text, window=256, tokens=512)

    report = outlier_report(reference, windows)
    console.print(report)
    errors = layer_errors(model, reference, windows)
    console.print("Largest errors of layers (weights, activations):")
    for e in sorted(errors, key=lambda e: -e.error)[:5]:
        console.print(f"  {e.name}  {e.error:.2%} ({e.weights:.2%}, {e.activations:.2%})", highlight=False)
    both = compare(model, reference, windows)
    console.print(f"KL of 8 bit to 16 bit: {both.kl:.4f} nats per token, same first choice: {both.top1_agreement:.1%}")

    folder.mkdir(parents=True, exist_ok=True)
    for file in (plot_outliers(report, folder / "outliers.png"), plot_layer_errors(errors, folder / "errors.png")):
        console.print(f"wrote {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/outliers"))
