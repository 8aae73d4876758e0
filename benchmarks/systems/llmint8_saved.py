"""This library from an int8 checkpoint that it has saved before."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("llmint8, saved", package="llmint8", kind="ours")


def checkpoint_of(checkpoint: Path) -> Path:
    """Returns the int8 checkpoint of a 16-bit one, made on the first call."""
    import llmint8

    folder = checkpoint.with_name(f"{checkpoint.name}-int8")
    if not (folder / "config.json").exists():
        llmint8.from_pretrained(checkpoint, load_in_8bit=True).save_pretrained(folder)
    return folder


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Loads it."""
    import llmint8

    return HuggingFace(llmint8.from_pretrained(checkpoint, device_map=device))
