"""What a checkpoint format has to say: the base class of the formats, which knows neither torch nor transformers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from llmint8.config import Int8Config


class Format:
    """Tensor names and `config.json` entry of an int8 checkpoint.

    Attributes:
        name: Value of `Int8Config.checkpoint_format`.
        quant_method: `quant_method` in the `quantization_config` entry of `config.json`.
        weight_name: Last part of the name of the int8 codes.
        scale_names: The same of the tensors that make the scale; the first, which is fp32, marks an int8 layer.
        scale_is_column: Whether that first tensor is [N, 1]; else it is [N].
        has_column_scale: Whether the format can store a `column_scale`.
        lists_float_layers: Whether every float layer must be in `skip_modules` before `to_config` is called.
        flat_weights: Whether some codes are stored flat, so that transformers alone refuses the checkpoint.
    """

    name: ClassVar[str]
    quant_method: ClassVar[str]
    weight_name: ClassVar[str] = "weight"
    scale_names: ClassVar[tuple[str, ...]] = ("weight_scale",)
    scale_is_column: ClassVar[bool] = True
    has_column_scale: ClassVar[bool] = False
    lists_float_layers: ClassVar[bool] = False
    flat_weights: ClassVar[bool] = False

    def from_config(self, stored: Mapping[str, Any]) -> "Int8Config":
        """Returns the settings of a checkpoint.

        Args:
            stored: `quantization_config` entry of its `config.json`.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A setting is unknown or out of range.
        """
        raise NotImplementedError

    def to_config(self, config: "Int8Config") -> dict[str, Any]:
        """Returns the `quantization_config` entry, JSON values, for a checkpoint with some settings."""
        raise NotImplementedError

    def read_scale(self, tensors: Mapping[str, "Tensor"]) -> "Tensor":
        """Returns our scale, fp32 [N, 1].

        Args:
            tensors: Those of `scale_names` that a layer of the checkpoint has.

        Raises:
            ValueError: The layer is stored in a way that cannot be read.
        """
        return tensors[self.scale_names[0]]

    def write_scale(self, scale: "Tensor") -> dict[str, "Tensor"]:
        """Returns a tensor for each of `scale_names`.

        Args:
            scale: fp32 [N, 1].
        """
        return {self.scale_names[0]: scale}
