"""This library from an int8 checkpoint that it has saved before."""

import shutil
from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace
from systems.model import made_from

SYSTEM = System("llmint8, saved", package="llmint8", kind="ours")


def checkpoint_of(checkpoint: Path) -> Path:
    """Returns the int8 checkpoint of a 16-bit one, made anew, since what is saved may have changed."""
    import torch

    import llmint8

    folder = made_from(checkpoint, "int8")
    shutil.rmtree(folder, ignore_errors=True)
    llmint8.from_pretrained(checkpoint, load_in_8bit=True, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Loads it."""
    import llmint8

    return HuggingFace(llmint8.from_pretrained(checkpoint, device_map=device))
