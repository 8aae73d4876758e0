"""transformers in fp32."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("transformers fp32", package="transformers", kind="32 bit")


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Loads a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    return HuggingFace(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, device_map=device))
