"""torchao's int8 weights, multiplied in bf16, through transformers."""

from pathlib import Path
from typing import Any

from systems import System
from systems.hugging_face import HuggingFace

SYSTEM = System("torchao, weights only", package="torchao", requirements=("torchao==0.18.0",))


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    from torchao.quantization import Int8WeightOnlyConfig

    return load_with(Int8WeightOnlyConfig(), checkpoint, device)


def load_with(kind: Any, checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint to a kind of weights as it is loaded."""
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map=device, quantization_config=TorchAoConfig(quant_type=kind)
    )
    return HuggingFace(model)
