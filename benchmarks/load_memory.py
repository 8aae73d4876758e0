"""Peak memory of loading a 16-bit checkpoint in 8 bit, and the size of what it becomes on disk."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from models import checkpoint_bytes, random_llama_1b
from rich.console import Console
from table import append, show

SYSTEMS = ("llmint8", "bitsandbytes", "bf16")


def anonymous_bytes() -> int:
    """Returns the resident memory of this process that is not a mapped file, in bytes (Linux)."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Returns the resident memory of this process, mapped files included, in bytes (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; this benchmark needs Linux")


class Peak:
    """Samples the anonymous memory of the process every 2 ms."""

    def __init__(self) -> None:
        self.start = self.bytes = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.002)

    def stop(self) -> None:
        """Ends the sampling."""
        self._done.set()
        self._thread.join()


def load(system: str, path: str, save_to: str) -> dict[str, Any]:
    """Loads a checkpoint with one system, in this process.

    Args:
        system: One of `SYSTEMS`.
        path: Of the checkpoint.
        save_to: Folder for the int8 checkpoint, or empty.
    """
    import torch
    import transformers

    import llmint8

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if system == "bitsandbytes":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    peak = Peak()
    start = time.perf_counter()
    if system == "llmint8":
        model = llmint8.from_pretrained(path, load_in_8bit=True)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **options)
    seconds = time.perf_counter() - start
    peak.stop()
    if save_to:
        model.save_pretrained(save_to)
    return {
        "seconds": seconds,
        "model": model.get_memory_footprint(),
        "largest": max(p.numel() * p.element_size() for p in model.parameters()),
        "before": peak.start,
        "peak": peak.bytes,
    }


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a 16-bit checkpoint; a random 1.1B by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
    save_to: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Loads the same checkpoint with every system, each in a process of its own."""
    if worker:
        print(json.dumps(load(worker, str(model), save_to)))
        return
    path = model or random_llama_1b()
    rows = []
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Loading") as status:
        for system in SYSTEMS:
            status.update(f"Loading with {system}")
            command = [sys.executable, __file__, "--worker", system, "--model", str(path)]
            saved = Path(folder) / system
            if system == "llmint8":
                command += ["--save-to", str(saved)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise SystemExit(f"{system} failed:\n{run.stderr}")
            result = json.loads(run.stdout.splitlines()[-1])
            limit = 1.15 * result["model"] + result["largest"]
            rows.append(
                {
                    "system": system,
                    "model in memory, MB": f"{result['model'] / 1e6:.0f}",
                    "largest tensor, MB": f"{result['largest'] / 1e6:.0f}",
                    "peak anonymous, MB": f"{result['peak'] / 1e6:.0f}",
                    "of it before loading, MB": f"{result['before'] / 1e6:.0f}",
                    "peak / (1.15 model + largest)": f"{result['peak'] / limit:.2f}",
                    "seconds": f"{result['seconds']:.1f}",
                    "checkpoint / 16-bit": f"{checkpoint_bytes(saved) / checkpoint_bytes(path):.3f}"
                    if saved.exists()
                    else "-",
                }
            )
    show(f"Loading {path.name}", rows)
    if output is not None:
        append(output, [{"model": path.name, **row} for row in rows])


if __name__ == "__main__":
    typer.run(main)
