"""torchao's int8 weights and dynamically quantized int8 activations, through transformers."""

from pathlib import Path

from systems import System
from systems.hugging_face import HuggingFace
from systems.torchao_weight_only import SYSTEM as WEIGHT_ONLY
from systems.torchao_weight_only import load_with

SYSTEM = System("torchao, dynamic", package="torchao", requirements=WEIGHT_ONLY.requirements)


def load(checkpoint: Path, device: str) -> HuggingFace:
    """Quantizes a checkpoint as it is loaded."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return load_with(Int8DynamicActivationInt8WeightConfig(), checkpoint, device)
