"""Time until a model is ready, and the memory it then resides in."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from load_memory import resident_bytes
from models import checkpoint_bytes, random_llama_1b
from rich.console import Console
from table import append, show

import llmint8

CASES = {
    "bf16": "bf16, loaded and every weight touched",
    "on the fly": "llmint8, quantized while it is read",
    "saved": "llmint8, an int8 checkpoint",
}


def ready(case: str, path: str) -> dict[str, float]:
    """Loads a model and runs its first token, in this process.

    Args:
        case: One of `CASES`.
        path: Of the checkpoint.
    """
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    before = resident_bytes()
    start = time.perf_counter()
    if case == "bf16":
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        for parameter in model.parameters():
            parameter.view(-1)[::1024].sum()  # one number of every 2 KiB
    else:
        model = llmint8.from_pretrained(path)
    loaded = time.perf_counter() - start
    with torch.no_grad():
        model(torch.arange(8)[None], logits_to_keep=1)
    return {"loaded": loaded, "first token": time.perf_counter() - start, "resident": resident_bytes() - before}


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a 16-bit checkpoint; a random 1.1B by default.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 3,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Loads the same model in every way, each in a process of its own, the files in the page cache."""
    if worker:
        print(json.dumps(ready(worker, str(model))))
        return
    source = model or random_llama_1b()
    results: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Saving in int8") as status:
        llmint8.from_pretrained(source).save_pretrained(folder)
        paths = {"bf16": source, "on the fly": source, "saved": Path(folder)}
        for turn in range(rounds + 1):  # the first one fills the page cache
            for case, path in paths.items():
                status.update(f"Round {turn} of {rounds}: {case}")
                command = [sys.executable, __file__, "--worker", case, "--model", str(path)]
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                if run.returncode:
                    raise SystemExit(f"{case} failed:\n{run.stderr}")
                if turn:
                    results[case].append(json.loads(run.stdout.splitlines()[-1]))
        int8_bytes = checkpoint_bytes(Path(folder))
    median = {case: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for case, runs in results.items()}
    rows = [
        {
            "case": CASES[case],
            "loaded, s": f"{values['loaded']:.2f}",
            "of bf16": f"{values['loaded'] / median['bf16']['loaded']:.2f}x",
            "first token, s": f"{values['first token']:.2f}",
            "resident, MB": f"{values['resident'] / 1e6:.0f}",
            "of the int8 checkpoint": f"{values['resident'] / int8_bytes:.2f}x",
        }
        for case, values in median.items()
    ]
    show(f"Ready: {source.name}", rows)
    if output is not None:
        append(output, [{"model": source.name, **row} for row in rows])


if __name__ == "__main__":
    typer.run(main)
