"""The registry of checkpoint formats: one file here and one entry in `FORMATS` make a format."""

from collections.abc import Mapping
from typing import Any

from llmint8.checkpoints.formats.base import Format
from llmint8.checkpoints.formats.bitsandbytes import BitsandbytesFormat
from llmint8.checkpoints.formats.llmint8 import Llmint8Format

__all__ = ["FORMATS", "Format", "format_named", "format_of"]

FORMATS: tuple[Format, ...] = (Llmint8Format(), BitsandbytesFormat())


def format_named(name: str) -> Format:
    """Returns a format.

    Args:
        name: As in `Int8Config.checkpoint_format`.

    Raises:
        ValueError: There is no such format.
    """
    for known in FORMATS:
        if known.name == name:
            return known
    names = ", ".join(repr(known.name) for known in FORMATS)
    raise ValueError(f"checkpoint_format must be one of {names}, got {name!r}")


def format_of(stored: Mapping[str, Any]) -> Format | None:
    """Returns the format of a checkpoint, None if it is quantized by a method that none of them has.

    Args:
        stored: `quantization_config` entry of its `config.json`.
    """
    method = stored.get("quant_method")
    method = getattr(method, "value", method)  # transformers' own configurations hold an enum
    return next((known for known in FORMATS if known.quant_method == method), None)
