"""Prepares transformers models with int8 layers for the operators of a CPU, and undoes it."""

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from llmint8.integrations.transformers.fused import fuse, unfuse
from llmint8.nn import FloatLinear
from llmint8.runtime import threads


def use_cpu_operators(model: nn.Module) -> None:
    """Prepares a transformers model with int8 layers for a CPU; on other devices it is as before.

    Args:
        model: Any module.
    """
    if isinstance(model, PreTrainedModel):
        _use_float_linear(model)
        fuse(model)
        threads.manage(model)


def use_plain_operators(model: nn.Module) -> None:
    """Undoes `use_cpu_operators`, but for managing threads, which changes nothing for a float model.

    Args:
        model: Any module.
    """
    if isinstance(model, PreTrainedModel):
        unfuse(model)
        for module in model.modules():
            if type(module) is FloatLinear:
                module.__class__ = nn.Linear  # type: ignore[assignment]


def _use_float_linear(model: PreTrainedModel) -> None:
    """Makes a head that was left in 16 bit fast for one token on a CPU; its weights and their names stay."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = FloatLinear
