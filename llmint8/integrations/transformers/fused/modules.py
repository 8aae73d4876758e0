"""Gives modules a class with a fused `forward`, and takes it from them again."""

from typing import Any

from torch import nn

from llmint8.integrations.transformers.fused import attention, decoder_layer, gated_mlp, rms_norm

_PARTS = (rms_norm, gated_mlp, attention, decoder_layer)
_classes: dict[type[nn.Module], type[nn.Module] | None] = {}


def fuse(model: nn.Module) -> None:
    """Makes the parts of a model that are known run as fused operators, in place; its parameters stay as they are.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if (fused := _fused(type(module))) is not None:
            module.__class__ = fused


def unfuse(model: nn.Module) -> None:
    """Undoes `fuse`.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if (base := getattr(type(module), "_unfused", None)) is not None:
            module.__class__ = base


def _fused(base: type[nn.Module]) -> Any | None:
    """A subclass with a fused `forward`, always the same; None if there is none, or if it has one already."""
    if base not in _classes:
        _classes[base] = _make(base)
    return _classes[base]


def _make(base: type[nn.Module]) -> type[nn.Module] | None:
    if hasattr(base, "_unfused"):
        return None
    for part in _PARTS:
        if (forward := part.fused_forward(base)) is not None:
            forward.__name__, forward.__qualname__ = "forward", f"{base.__qualname__}.forward"
            # The name is that of the class, which transformers looks at when it spreads a model over devices.
            members = {
                "forward": forward,
                "_unfused": base,
                "_plain_forward": staticmethod(base.forward),  # as it was when it was found to be known
                "__module__": base.__module__,
                "__reduce_ex__": _reduce,
            }
            return type(base.__name__, (base,), members)
    return None


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """Copies and pickles by the class of transformers, which other processes can import."""
    return _restore, (type(module)._unfused,), module.__getstate__()


def _restore(base: type[nn.Module]) -> nn.Module:
    cls = _fused(base) or base
    return cls.__new__(cls)
