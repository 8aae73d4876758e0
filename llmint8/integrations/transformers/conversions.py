"""What happens to tensors between a checkpoint and a model, as transformers' `ConversionOps`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmint8.checkpoints.formats import Format
from llmint8.nn import Int8Linear
from llmint8.nn.forms import is_int8


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
            if is_int8(layer) and leaf == "weight":
                result |= self._quantized(name, _only(value), layer)
            else:
                result[name] = _only(value)
        return result

    def _quantized(self, name: str, weight: Tensor, layer: Int8Linear) -> dict[str, Tensor]:
        weight = layer.as_rows(weight)
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
            if is_int8(layer) and leaf == "weight":
                scale = layer.column_scale_for(layer.as_rows(_only(value)))
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


class RenameWeight(ConversionOps):
    """Gives int8 codes the name that they have in the model, or in a checkpoint."""

    def convert(self, input_dict: dict[str, Any], *, target_patterns: list[str], **kwargs: Any) -> dict[str, Tensor]:
        """Returns the codes."""
        ((_, value),) = input_dict.items()
        return {target_patterns[0]: _only(value)}

    @property
    def reverse_op(self) -> ConversionOps:
        """The same."""
        return RenameWeight()


class ReadScale(ConversionOps):
    """Turns the tensors that a format stores for a scale into ours ([N, 1]).

    Args:
        format: Format of the checkpoint.
    """

    def __init__(self, format: Format) -> None:
        self.format = format

    def convert(self, input_dict: dict[str, Any], *, target_patterns: list[str], **kwargs: Any) -> dict[str, Tensor]:
        """Returns the scale.

        Raises:
            ValueError: The layer is stored in a way that cannot be read.
        """
        tensors = {pattern.removeprefix("."): _only(value) for pattern, value in input_dict.items()}
        return {target_patterns[0]: Parameter(self.format.read_scale(tensors), requires_grad=False)}

    @property
    def reverse_op(self) -> ConversionOps:
        """`WriteScale`."""
        return WriteScale(self.format)


class WriteScale(ConversionOps):
    """Turns our scale into the tensors that a format stores.

    Args:
        format: Format of the checkpoint.
    """

    supports_many_to_many = True

    def __init__(self, format: Format) -> None:
        self.format = format

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Returns the tensors by the ends of their names."""
        ((_, value),) = input_dict.items()
        return {f".{leaf}": tensor for leaf, tensor in self.format.write_scale(_only(value)).items()}

    @property
    def reverse_op(self) -> ConversionOps:
        """`ReadScale`."""
        return ReadScale(self.format)


def _only(value: Any) -> Any:
    """The tensor that a conversion gets, alone or in a list of one."""
    return value[0] if isinstance(value, list) else value
