"""Gives modules a class with a fused `forward`, and takes it from them again."""

from torch import nn

from llmint8.integrations.transformers.fused.attention import FusedAttention
from llmint8.integrations.transformers.fused.decoder_layer import FusedDecoderLayer
from llmint8.integrations.transformers.fused.fused_module import FusedModule, fused_class
from llmint8.integrations.transformers.fused.gated_mlp import FusedGatedMLP
from llmint8.integrations.transformers.fused.rms_norm import FusedGemmaRMSNorm, FusedRMSNorm

FUSED_MODULES: tuple[type[FusedModule], ...] = (
    FusedRMSNorm,
    FusedGemmaRMSNorm,
    FusedGatedMLP,
    FusedAttention,
    FusedDecoderLayer,
)


def fuse(model: nn.Module) -> None:
    """Makes the parts of a model that are known run as fused operators, in place; its parameters stay as they are.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if (fused := fused_class(type(module))) is not None:
            module.__class__ = fused


def unfuse(model: nn.Module) -> None:
    """Undoes `fuse`.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if isinstance(module, FusedModule):
            module.__class__ = type(module).plain_class  # type: ignore[assignment]
