"""LLM.int8() for PyTorch and Hugging Face transformers: half the memory of 16 bit, its accuracy, and speed."""

import importlib
from typing import TYPE_CHECKING, Any

from llmint8._version import __version__
from llmint8.integrations.registration import register as _register

if TYPE_CHECKING:
    from llmint8.calibration import calibrate
    from llmint8.checkpoints.formats.bitsandbytes import save_bitsandbytes
    from llmint8.checkpoints.headers import CheckpointError
    from llmint8.config import Int8Config
    from llmint8.estimation import Estimate, estimate
    from llmint8.loading import from_pretrained
    from llmint8.nn import Int8Linear
    from llmint8.quantize import dequantize_, quantize_
    from llmint8.streaming import quantize_checkpoint

__all__ = [
    "CheckpointError",
    "Estimate",
    "Int8Config",
    "Int8Linear",
    "__version__",
    "calibrate",
    "dequantize_",
    "estimate",
    "from_pretrained",
    "quantize_",
    "quantize_checkpoint",
    "save_bitsandbytes",
]

# Imported when they are first asked for: torch alone takes a second, and `llmint8 --help` needs none of it.
_HOMES = {
    "CheckpointError": "checkpoints.headers",
    "Estimate": "estimation",
    "Int8Config": "config",
    "Int8Linear": "nn",
    "calibrate": "calibration",
    "dequantize_": "quantize",
    "estimate": "estimation",
    "from_pretrained": "loading",
    "quantize_": "quantize",
    "quantize_checkpoint": "streaming",
    "save_bitsandbytes": "checkpoints.formats.bitsandbytes",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        if not name.startswith("_"):  # a module, as in `llmint8.functional`
            try:
                return importlib.import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


_register()
