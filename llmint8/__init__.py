"""LLM.int8() for PyTorch and Hugging Face transformers: half the memory of 16 bit, its accuracy, and speed."""

from llmint8._version import __version__
from llmint8.calibration import calibrate
from llmint8.checkpoint import CheckpointError
from llmint8.config import Int8Config
from llmint8.integrations.bitsandbytes import save_bitsandbytes
from llmint8.integrations.transformers import register as _register
from llmint8.loading import from_pretrained
from llmint8.nn import Int8Linear
from llmint8.quantize import dequantize_, quantize_

__all__ = [
    "CheckpointError",
    "Int8Config",
    "Int8Linear",
    "__version__",
    "calibrate",
    "dequantize_",
    "from_pretrained",
    "quantize_",
    "save_bitsandbytes",
]

_register()
