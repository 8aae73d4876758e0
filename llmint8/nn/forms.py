"""Which int8 layer takes the place of which float layer: one table, asked wherever layers are replaced or counted.

CONTRIBUTING.md says how to add a form.
"""

from typing import TypeGuard

from torch import nn

from llmint8.nn.conv1d import Int8Conv1D
from llmint8.nn.float_linear import FloatLinear
from llmint8.nn.linear import Int8Linear

# By the class itself or, where importing its module would cost time, by its full name. A subclass of a class that is
# listed has no form unless it is listed too, for its meaning may be its own.
_FORMS: dict[type[nn.Module] | str, type[Int8Linear]] = {
    nn.Linear: Int8Linear,
    FloatLinear: Int8Linear,
    "transformers.models.falcon.modeling_falcon.FalconLinear": Int8Linear,
    "transformers.pytorch_utils.Conv1D": Int8Conv1D,
}


def register_form(float_class: type[nn.Module] | str, int8_class: type[Int8Linear]) -> None:
    """Makes an int8 layer the form of a float one, for quantizing as well as for loading.

    Args:
        float_class: The class of the float layer, or its full name such as `"package.module.Class"`; subclasses are
            not meant. It has a floating-point parameter `weight` and an attribute `bias`, which may be None.
        int8_class: Its int8 form; replaces an earlier one.

    Raises:
        TypeError: `int8_class` is no subclass of `Int8Linear`.
    """
    if not issubclass(int8_class, Int8Linear):
        raise TypeError(f"an int8 form must be a subclass of Int8Linear, got {int8_class.__name__}")
    _FORMS[float_class] = int8_class


def int8_form(layer: nn.Module) -> type[Int8Linear] | None:
    """Returns the int8 form of a float layer, or None if it has none."""
    kind = type(layer)
    return _FORMS.get(kind) or _FORMS.get(f"{kind.__module__}.{kind.__qualname__}")


def is_int8(module: nn.Module) -> TypeGuard[Int8Linear]:
    """Returns whether a module is a layer in its int8 form."""
    return isinstance(module, Int8Linear)
