"""Follows what a model on the meta device allocates and frees, as its tensors come and go."""

import contextlib
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llmint8 import ops
from llmint8.estimation.workspace import Device, attention_workspace, workspace

# Some models run a loop over the tokens where a library of kernels is not installed: minutes for a long context.
_MOST_OPERATORS = 20_000


class TooManyOperatorsError(RuntimeError):
    """A model calls more operators than anyone wants to wait for."""


class Allocations(TorchDispatchMode):
    """Records each storage that operators allocate on the meta device, and when it is freed."""

    def __init__(self, device: Device, existing: Iterable[Tensor] = ()) -> None:
        """Starts with nothing.

        Args:
            device: What the meta device stands for.
            existing: Tensors whose storages are not counted.
        """
        super().__init__()
        self._device = device
        self._numbers = dict.fromkeys(map(_key, existing), -1)  # of the storages that are there
        self._next = 0
        self._operators = 0
        self._events: list[tuple[int, int]] = []  # a storage, and the bytes that it adds or takes away

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operator and records what it allocates."""
        self._operators += 1
        if self._operators > _MOST_OPERATORS:
            raise TooManyOperatorsError(f"it calls more than {_MOST_OPERATORS} operators")
        results = func(*args, **(kwargs or {}))
        hidden = workspace(func._schema.name, args, self._device)
        self.passing(hidden, results)
        return results

    def passing(self, hidden: int, results: Any) -> None:
        """Records what an operator returns, and what it had besides while it ran.

        Args:
            hidden: Bytes.
            results: Tensors, in any structure.
        """
        for tensor in tree_iter(results):
            if isinstance(tensor, Tensor) and tensor.is_meta and (key := _key(tensor)) not in self._numbers:
                storage = tensor.untyped_storage()
                number, size = self._next, storage.nbytes()
                self._next += 1
                self._numbers[key] = number
                self._events.append((number, size))
                weakref.finalize(storage, self._freed, key, number, size)
        if hidden:
            self._events += [(-1, hidden), (-1, -hidden)]

    def _freed(self, key: int, number: int, size: int) -> None:
        self._events.append((number, -size))
        if self._numbers.get(key) == number:
            del self._numbers[key]

    def numbers_of(self, tensors: Iterable[Tensor]) -> set[int]:
        """Returns the numbers of the storages that some tensors lie in, for `peak`."""
        return {self._numbers[key] for key in map(_key, tensors) if key in self._numbers}

    def mark(self) -> int:
        """Returns a point in time, for `peak`."""
        return len(self._events)

    def peak(self, start: int = 0, without: Collection[int] = ()) -> int:
        """Returns the most bytes that were there at any time.

        Args:
            start: A point in time; earlier ones do not count, though what was allocated then does.
            without: Storages that are left out.
        """
        live = most = 0
        for i, (number, size) in enumerate(self._events):
            if number not in without:
                live += size
                most = max(most, live) if i >= start else most
        return most


@contextlib.contextmanager
def follow(device: Device, existing: Iterable[Tensor]) -> Iterator[Allocations]:
    """Follows what happens on the meta device as if it were another device.

    Args:
        device: What it stands for; on a CPU, operators are fused.
        existing: Tensors that are there before.

    Yields:
        The record.
    """
    token = ops.meta_is_cpu.set(device.type == "cpu")
    try:
        with torch.no_grad(), Allocations(device, existing) as record, _Attention(record, device):
            yield record
    finally:
        ops.meta_is_cpu.reset(token)


class _Attention(TorchFunctionMode):
    """Stands for PyTorch's attention, which on the meta device would make the matrix of scores that no other makes."""

    def __init__(self, record: Allocations, device: Device) -> None:
        super().__init__()
        self._record, self._device = record, device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
        *batch, heads, rows, _ = query.shape
        result = query.new_empty(*batch, rows, heads, value.shape[-1]).transpose(-3, -2)
        self._record.passing(attention_workspace(query, key, value, self._device), result)
        return result


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
