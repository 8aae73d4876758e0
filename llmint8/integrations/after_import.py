"""Calls functions right after a module has been imported, so that this package need not import it for them."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_waiting: dict[str, list[Callable[[], None]]] = {}


def after_import(module: str, function: Callable[[], None]) -> None:
    """Calls a function at once if a module is imported already, else as soon as it is.

    Args:
        module: The full name.
        function: Is called once, after those that wait for the module already.
    """
    if module in sys.modules:
        function()
        return
    functions = _waiting.setdefault(module, [])
    if function not in functions:
        functions.append(function)
    if not any(isinstance(finder, _AfterImport) and finder.name == module for finder in sys.meta_path):
        _remove_finders(module)
        sys.meta_path.insert(0, _AfterImport(module))


def stop_waiting(module: str, function: Callable[[], None]) -> bool:
    """Forgets what `after_import` was told.

    Args:
        module: The full name.
        function: The one that should have been called.

    Returns:
        Whether the function was waiting for the module.
    """
    functions = _waiting.get(module, [])
    if function not in functions:
        return False
    functions.remove(function)
    if not functions:
        del _waiting[module]
        _remove_finders(module)
    return True


def _call(module: str) -> None:
    for function in list(_waiting.get(module, ())):
        function()
    _waiting.pop(module, None)


def _remove_finders(module: str) -> None:
    """Removes what waits for a module, also from an earlier import of this package.

    Two finders for one module would ask each other for it forever.
    """
    for finder in list(sys.meta_path):
        if type(finder).__name__ == _AfterImport.__name__ and getattr(finder, "name", None) == module:
            sys.meta_path.remove(finder)


class _AfterImport:  # importlib.abc, for a base class, would take longer to import than all of this
    """Finds a module as the other finders do, and calls the functions that wait for it once it has been executed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == self.name and self in sys.meta_path:  # until it has been imported without an error
                _call(self.name)
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
