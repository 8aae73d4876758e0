"""What happens to tensors between a checkpoint and a model, as transformers' `ConversionOps`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8.nn import Int8Conv1D, Int8Linear


class QuantizeWeight(ConversionOps):
    """Turns a float weight into an int8 one and its scale, when a 16-bit checkpoint is loaded.

    Args:
        problems: Gets a message for each weight that has no int8 form. transformers hides what an operation raises in
            a log, so the quantizer raises it when all is loaded.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def convert(self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the tensors of each int8 layer under their full names, anything else as it is."""
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            layer, leaf = get_module_from_name(model, name)
            if isinstance(layer, Int8Linear) and leaf == "weight":
                result |= self._quantized(name, _only(value), layer)
            else:
                result[name] = _only(value)
        return result

    def _quantized(self, name: str, weight: Tensor, layer: Int8Linear) -> dict[str, Tensor]:
        weight = _as_in_int8(weight, layer)
        try:
            if weight.shape != layer.weight.shape:
                raise ValueError(f"{name} should be {list(layer.weight.shape)}, got {list(weight.shape)}")
            codes, scale, column_scale = layer.quantized(weight, name)
        except ValueError as error:  # kept until the whole model is read, for transformers would only log it
            self.problems.append(str(error))
            codes, scale = (torch.zeros_like(t, device="cpu") for t in (layer.weight, layer.weight_scale))
            column_scale = None
        tensors = {name: codes, f"{name}_scale": scale}
        if column_scale is not None:
            layer.set_column_scale(torch.empty_like(column_scale, device="meta"))  # a place for it
            tensors[f"{name.removesuffix('weight')}column_scale"] = column_scale
        return {name: Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}


class FindColumnScale(ConversionOps):
    """Gives int8 layers a place, on the meta device, for the `column_scale` of their weights; loads nothing."""

    def convert(self, input_dict: dict[str, Any], *, model: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        """Returns nothing."""
        for name, value in input_dict.items():
            layer, leaf = get_module_from_name(model, name)
            if isinstance(layer, Int8Linear) and leaf == "weight":
                scale = layer.column_scale_for(_as_in_int8(_only(value), layer))
                layer.set_column_scale(None if scale is None else torch.empty_like(scale, device="meta"))
        return {}


class Identity(ConversionOps):
    """Changes nothing, but makes transformers write the quantized tensor to the offload folder.

    Without a conversion, a disk-offloaded weight is read back from the 16-bit checkpoint and cast to int8: zeros.
    """

    def convert(self, input_dict: dict[str, Any], *, full_layer_name: str = "", **kwargs: Any) -> dict[str, Tensor]:
        """Returns the tensor under its full name."""
        ((_, value),) = input_dict.items()
        return {full_layer_name: _only(value)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The same."""
        return Identity()


class Unflatten(ConversionOps):
    """Gives a weight that is stored flat its two dimensions; see `flat_weights`."""

    def convert(
        self, input_dict: dict[str, Any], *, full_layer_name: str = "", model: Any = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns the weight as [N, K]."""
        ((_, value),) = input_dict.items()
        weight, shape = _only(value), model.get_parameter(full_layer_name).shape
        if weight.numel() != shape.numel():
            raise ValueError(
                f"{full_layer_name} has {weight.numel()} values in the checkpoint, {shape.numel()} in the model"
            )
        return {full_layer_name: weight.view(shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        """`Flatten`."""
        return Flatten()


class Flatten(ConversionOps):
    """Stores a weight flat; see `flat_weights`."""

    def convert(self, input_dict: dict[str, Any], *, full_layer_name: str = "", **kwargs: Any) -> dict[str, Tensor]:
        """Returns the weight as [N * K]."""
        ((_, value),) = input_dict.items()
        return {full_layer_name: _only(value).flatten()}

    @property
    def reverse_op(self) -> ConversionOps:
        """`Unflatten`."""
        return Unflatten()


class ReadBitsandbytesScale(ConversionOps):
    """Turns the row absmax of bitsandbytes (`SCB`, [N]) into our scale ([N, 1], absmax / 127)."""

    def convert(self, input_dict: dict[str, Any], *, target_patterns: list[str], **kwargs: Any) -> dict[str, Tensor]:
        """Returns the scale.

        Raises:
            ValueError: The weight is not stored row by row but in one of the tiled formats of old versions.
        """
        absmax = _only(input_dict.get(BITSANDBYTES_SCALE))
        layout = _only(input_dict.get(BITSANDBYTES_FORMAT))
        if layout is not None and int(layout) != 0:
            raise ValueError(f"weight_format must be 0 (row), got {int(layout)}; save it again with bitsandbytes 0.45+")
        return {target_patterns[0]: Parameter(absmax.float()[:, None] / 127, requires_grad=False)}

    @property
    def reverse_op(self) -> ConversionOps:
        """`WriteBitsandbytesScale`."""
        return WriteBitsandbytesScale()


class WriteBitsandbytesScale(ConversionOps):
    """Turns our scale into the `SCB` and `weight_format` of bitsandbytes."""

    supports_many_to_many = True

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Returns the row absmax and the code of the row layout."""
        ((_, value),) = input_dict.items()
        return {
            BITSANDBYTES_SCALE: _absmax(_only(value)[:, 0]),
            BITSANDBYTES_FORMAT: torch.tensor(0, dtype=torch.uint8),
        }

    @property
    def reverse_op(self) -> ConversionOps:
        """`ReadBitsandbytesScale`."""
        return ReadBitsandbytesScale()


BITSANDBYTES_SCALE = ".SCB"
BITSANDBYTES_FORMAT = ".weight_format"


def _absmax(scale: Tensor) -> Tensor:
    """The row absmax that a scale was made from: `absmax / 127` is the scale again, bit for bit.

    An fp32 product can miss the absmax by its last bit. One of 16-bit weights has at most 11 significant bits, so
    where the product rounded to 12 bits gives the scale too, that is the one.
    """
    absmax = scale.float() * 127
    short = ((absmax.view(torch.int32) + 0x800) & ~0xFFF).view(torch.float32)
    return torch.where(short / 127 == scale, short, absmax)


def _as_in_int8(weight: Tensor, layer: Int8Linear) -> Tensor:
    """A float weight of a checkpoint as [N, K]."""
    return weight.T if isinstance(layer, Int8Conv1D) else weight


def _only(value: Any) -> Any:
    """The tensor that a conversion gets, alone or in a list of one."""
    return value[0] if isinstance(value, list) else value
