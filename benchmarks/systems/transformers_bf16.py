"""transformers in bf16."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("transformers bf16", package="transformers", kind="16 bit")


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Loads a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    return HuggingFace(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map=device))
