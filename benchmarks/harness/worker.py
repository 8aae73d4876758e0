"""A process that loads one system and measures it: `python -m harness.worker`, in the system's environment."""

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from systems.model import Model, checkpoint_bytes

from harness import energy, memory
from harness.host import versions

FIRST_PROMPT = 32


def load(adapter: Any, checkpoint: Path, device: str) -> tuple[Model, dict[str, Any]]:
    """Loads a checkpoint, and runs its first token.

    Returns:
        The model, and seconds and bytes by name.
    """
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401, what every system imports is not loading

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    peak = memory.Peak(device)
    start = time.perf_counter()
    model: Model = adapter.load(checkpoint, device)
    seconds = time.perf_counter() - start
    peaks = peak.stop()
    model.decode(FIRST_PROMPT, 1, 0, 0)
    ready = time.perf_counter() - start
    weights, streamed = model.weight_bytes()
    return model, {
        "load": seconds,
        "load and first token": ready,
        "checkpoint": checkpoint_bytes(checkpoint),
        "weights": weights,
        "weights read in a step": streamed,
        "anonymous": memory.anonymous_bytes(),
        "resident": memory.resident_bytes(),
        **peaks,
    }


def prefill(model: Model, prompt: int, batch: int) -> dict[str, Any]:
    """Times a prompt."""
    return {"seconds": model.prefill(prompt, batch)}


def decode(model: Model, prompt: int, batch: int, tokens: int, limit: float, device: str) -> dict[str, Any]:
    """Times generation, and counts the energy of the steps after the first token."""
    meter = energy.Meter(device)
    first, *steps = model.decode(prompt, batch, tokens, limit)
    joules = meter.joules()
    if joules is not None:  # that of the prompt is found by itself
        meter = energy.Meter(device)
        model.decode(prompt, batch, 0, limit)
        joules -= meter.joules() or 0.0
    return {"first": first, "steps": steps, "joules": joules}


def accuracy(model: Model, tokens: list[int], window: int, reference: str, write: bool) -> dict[str, Any]:
    """Compares the distributions of each next token with those in a folder, or writes them there.

    As `llmint8.analysis.compare` does; but a system of others must not import llmint8, which changes transformers.

    Args:
        model: A loaded one.
        tokens: Tokens of a text.
        window: Tokens of one forward pass.
        reference: The folder.
        write: Whether this model is what others are compared with.

    Returns:
        Perplexity, and where there is a reference "KL", in nats per token, and "top-1", a share.
    """
    loss = divergence = agreement = count = 0.0
    for index, inputs in enumerate(torch.tensor(tokens).split(window)):
        log_probs = model.log_probs(inputs)[:-1]
        file = Path(reference) / f"{index}.pt"
        if write:
            torch.save(log_probs, file)
        loss -= log_probs.gather(1, inputs[1:, None]).sum().item()
        count += len(log_probs)
        if not file.exists():  # the reference does not run
            continue
        expected = torch.load(file)
        divergence += (expected.exp() * (expected - log_probs)).sum().item()
        agreement += (log_probs.argmax(-1) == expected.argmax(-1)).sum().item()
    found = {"perplexity": math.exp(loss / count)}
    if any(Path(reference).iterdir()):
        found |= {"KL": divergence / count, "top-1": agreement / count}
    return found


def main() -> None:
    """Loads what the first line of the input says and answers the others, one JSON a line, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what libraries print
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    adapter = importlib.import_module(f"systems.{setup['adapter']}")
    if setup["only_prepare"]:
        checkpoint = adapter.checkpoint_of(Path(setup["checkpoint"]))
        print(json.dumps({"checkpoint": str(checkpoint)}), file=answers, flush=True)
        return
    kinds = {"prefill": prefill, "decode": decode, "accuracy": accuracy}
    model, loaded = load(adapter, Path(setup["checkpoint"]), setup["device"])
    loaded["versions"] = versions(adapter.SYSTEM.package, "torch", "transformers")
    print(json.dumps(loaded), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("kind")
        try:
            answer = kinds[kind](model, **request)
        except NotImplementedError as error:
            answer = {"failed": str(error)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
