"""This library with its head in 8 bit, too, as llama.cpp has it."""

from pathlib import Path

from systems import System, llmint8
from systems.hugging_face import HuggingFace

SYSTEM = System("llmint8, 8-bit head", package="llmint8", kind="ours")


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    return llmint8.load(checkpoint, device, include_modules=["lm_head"])
