"""bitsandbytes' LLM.int8() through transformers' `load_in_8bit`, in bf16 as the others are."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("bitsandbytes", package="bitsandbytes", requirements=("bitsandbytes==0.50.2",))


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    import logging

    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call, which takes time
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map=device, quantization_config=quantization
    )
    return HuggingFace(model)
