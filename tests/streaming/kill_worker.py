"""Kills processes that quantize a checkpoint, at random moments, and prints what each left; a test runs it.

Everything is imported once: a copy of the process does the work. One thread, for OpenMP's do not survive a copy.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import transformers

import llmint8
from llmint8.streaming.staging import _NAME


def quantize(source: Path, target: Path, overwrite: bool) -> None:
    llmint8.quantize_checkpoint(source, target, max_shard_size="20KB", overwrite=overwrite)


def copy_that_runs(source: Path, target: Path, overwrite: bool) -> int:
    pid = os.fork()
    if pid == 0:
        quantize(source, target, overwrite)
        os._exit(0)
    return pid


def fingerprint(folder: Path) -> str:
    """The weights of a checkpoint that loads, as a text; or why it does not load."""
    try:
        model = llmint8.from_pretrained(folder)
    except (FileNotFoundError, llmint8.CheckpointError) as error:
        return type(error).__name__
    return str(sum(p.double().abs().sum().item() for p in model.parameters()))


def main(old: Path, new: Path, folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    random.seed(rounds)
    target = folder / "target"
    quantize(old, target, False)
    shutil.copytree(target, folder / "old")
    start = time.monotonic()
    os.waitpid(copy_that_runs(new, target, True), 0)
    duration = time.monotonic() - start
    shutil.copytree(target, folder / "new")
    outcomes = []
    for i in range(rounds):
        overwrite = i % 2 == 1
        shutil.rmtree(target)
        if overwrite:
            shutil.copytree(folder / "old", target)
        pid = copy_that_runs(new, target, overwrite)
        time.sleep(duration * random.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left = fingerprint(target)
        hidden = fingerprint(target / _NAME / "files")
        if left != fingerprint(folder / "new"):
            quantize(new, target, overwrite)
        names = {path.name: path.read_bytes() for path in target.iterdir()}
        expected = {path.name: path.read_bytes() for path in (folder / "new").iterdir()}
        outcomes.append({"overwrite": overwrite, "left": left, "hidden": hidden, "same": names == expected})
    print(json.dumps({"old": fingerprint(folder / "old"), "new": fingerprint(folder / "new"), "outcomes": outcomes}))


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
