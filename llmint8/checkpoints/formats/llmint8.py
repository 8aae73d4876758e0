"""Our own format: `weight` (int8 [N, K]), `weight_scale` (fp32 [N, 1]), `column_scale`, and every setting."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmint8.checkpoints.formats.base import Format

if TYPE_CHECKING:
    from llmint8.config import Int8Config


class Llmint8Format(Format):
    """Our own format, the one that stores everything."""

    name = "llmint8"
    quant_method = "llmint8"
    has_column_scale = True
    flat_weights = True

    def from_config(self, stored: Mapping[str, Any]) -> "Int8Config":
        """Returns the settings as they were saved; they may name another format, when a load has changed them."""
        from llmint8.config import Int8Config

        return Int8Config.from_dict(stored)

    def to_config(self, config: "Int8Config") -> dict[str, Any]:
        """Returns every setting."""
        return config.to_dict()
