"""`FusedModule`: what all fused classes have in common: where they come from, how they are copied, when they run."""

from typing import Any, ClassVar

from torch import nn

# The class that a module of a class gets; None if there is none for it.
_classes: dict[type[nn.Module], type["FusedModule"] | None] = {}


class FusedModule(nn.Module):
    """Mixed in over the class of a module: its `forward` is one operator where that computes the same.

    A subclass says which classes it is for, and has a `forward`; where that cannot take a call, it gives it to
    `super().forward`, which is that of transformers.

    Attributes:
        plain_class: The class of transformers that it was mixed in over.
        plain_forward: Its `forward` as it was when it was found to be known.
    """

    plain_class: ClassVar[type[nn.Module]]
    plain_forward: ClassVar[Any]

    @classmethod
    def is_for(cls, plain: type[nn.Module]) -> bool:
        """Whether the fused `forward` computes what that of a class does.

        Args:
            plain: A class of modules.
        """
        raise TypeError(f"{cls.__name__} does not say which classes it is for")

    def is_patched(self) -> bool:
        """Whether somebody has given the class below another `forward` since, so that it is no longer known."""
        cls = type(self)
        return cls.plain_class.forward is not cls.plain_forward

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles by the class of transformers, which other processes can import."""
        return _restore, (type(self).plain_class,), self.__getstate__()


def fused_class(plain: type[nn.Module]) -> type[FusedModule] | None:
    """Returns the fused form of a class, always the same; None if there is none, or if it is one itself.

    Args:
        plain: A class of modules.
    """
    if plain not in _classes:
        _classes[plain] = _make(plain)
    return _classes[plain]


def _make(plain: type[nn.Module]) -> type[FusedModule] | None:
    from llmint8.integrations.transformers.fused.modules import FUSED_MODULES

    if issubclass(plain, FusedModule):
        return None
    for mixin in FUSED_MODULES:
        if mixin.is_for(plain):
            # The name is that of the class, which transformers looks at when it spreads a model over devices.
            members = {
                "plain_class": plain,
                "plain_forward": staticmethod(plain.forward),
                "__module__": plain.__module__,
            }
            return type(plain.__name__, (mixin, plain), members)
    return None


def _restore(plain: type[nn.Module]) -> nn.Module:
    cls = fused_class(plain) or plain
    return cls.__new__(cls)
