"""The operators `torch.ops.llmint8.*`, each whole in one file: schema, fallback, shapes under tracing, gradient.

`linear.py` has the int8 product, `weight.py` what makes weights int8, and the others what a model does between its int8
layers. `registry.py` turns a declaration into an operator; who runs it is the business of `llmint8.kernels.backend`.
"""

from llmint8.ops.attention import attention, causal_mask
from llmint8.ops.checks import INPUT_DTYPES, check_finite, is_on_cpu, meta_is_cpu
from llmint8.ops.float_linear import float_linear
from llmint8.ops.linear import int8_linear
from llmint8.ops.model import decoder_layer, gated_mlp, int8_linears, rms_norm, rotate
from llmint8.ops.weight import dequantize_weight, quantize_weight

__all__ = [
    "INPUT_DTYPES",
    "attention",
    "causal_mask",
    "check_finite",
    "decoder_layer",
    "dequantize_weight",
    "float_linear",
    "gated_mlp",
    "int8_linear",
    "int8_linears",
    "is_on_cpu",
    "meta_is_cpu",
    "quantize_weight",
    "rms_norm",
    "rotate",
]
