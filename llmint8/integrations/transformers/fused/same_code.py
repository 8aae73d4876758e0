"""Tells whether functions compute the same because they are the same code."""

import inspect
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any


def same_code(function: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions have the same instructions, names and constants, but for documentation and annotations.

    The globals that they use may still differ.

    Args:
        function: One, decorated or not.
        other: Another.
    """
    a, b = inspect.unwrap(function), inspect.unwrap(other)
    if a is b:
        return True
    return _essence(a) == _essence(b)


def is_known(function: Any, module: ModuleType, name: str) -> bool:
    """Whether a function has the code that transformers gives a function of another module.

    Args:
        function: One.
        module: A module of transformers.
        name: In the module, `"LlamaMLP.forward"`.

    Returns:
        False, too, if somebody has put another function in the place of that one: it is no longer known what it does.
    """
    known: Any = module
    for part in name.split("."):
        known = getattr(known, part)
    original = inspect.unwrap(known)
    is_original = original.__module__ == module.__name__ and original.__qualname__ == name
    return is_original and same_code(function, known)


def _essence(function: Any) -> tuple[Any, ...] | None:
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return (function,)
    constants = code.co_consts[1:] if function.__doc__ is not None else code.co_consts[code.co_consts[:1] == (None,) :]
    return (
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        function.__defaults__,
        function.__kwdefaults__,
    )
