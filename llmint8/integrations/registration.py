"""Registers the package with transformers, without importing more of it than the program does."""

from llmint8.integrations import patches
from llmint8.integrations.after_import import after_import


def register() -> None:
    """Makes `from_pretrained` know `Int8Config`, at once or as soon as transformers' modelling code is imported.

    The operators `torch.ops.llmint8.*`, which a compiled or exported model needs, are there as soon as torch is.
    """
    after_import("torch", _register_operators)
    after_import(patches.MODELING, _prepare_transformers_models)
    patches.install_all()


def _register_operators() -> None:
    from llmint8 import ops  # noqa: F401


def _prepare_transformers_models() -> None:
    """Has `quantize_` and `dequantize_` do what transformers models need beyond other modules."""
    from llmint8.integrations.transformers.cpu_inference import use_cpu_operators
    from llmint8.integrations.transformers.heads import layers_kept_in_16_bit
    from llmint8.integrations.transformers.saved_state import forget_int8
    from llmint8.quantize import after_dequantize, after_quantize, default_skips

    if layers_kept_in_16_bit not in default_skips:
        default_skips.append(layers_kept_in_16_bit)
        after_quantize.append(use_cpu_operators)
        after_dequantize.append(forget_int8)
