"""optimum-quanto's int8 weights, multiplied in bf16, through transformers."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("optimum-quanto", package="optimum-quanto", requirements=("optimum-quanto==0.2.7",))


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    import torch
    from transformers import AutoModelForCausalLM, QuantoConfig

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map=device, quantization_config=QuantoConfig(weights="int8")
    )
    return HuggingFace(model)
