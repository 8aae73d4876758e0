"""This library, with its defaults."""

from pathlib import Path
from typing import Any

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("llmint8", package="llmint8", kind="ours")


def load(checkpoint: Path, device: str, **options: Any) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    import torch

    import llmint8

    options = {"load_in_8bit": True, "dtype": torch.bfloat16, "device_map": device, **options}
    return HuggingFace(llmint8.from_pretrained(checkpoint, **options))
