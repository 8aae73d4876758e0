"""The backends, in the order in which they are asked: who runs an operator, for which tensors.

How to add one: `kernels/README.md`. A call goes to the first backend that takes its arguments and has the operator; a
kernel may still return `NotImplemented`, and then the next one is asked. What no backend has, the operator's own
fallback in plain PyTorch computes (see `llmint8.ops.registry`).
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmint8.kernels import FORCED_BACKEND, triton
from llmint8.kernels.cpu import native
from llmint8.kernels.cpu.limits import DECODE_ROWS

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """Kernels for one kind of device.

    Attributes:
        name: The folder in `kernels/`, or `"native"` for the C++ in `kernels/cpu/csrc`.
        takes: Whether the kernels run for the arguments of an operator, the first of which is a tensor.
        takes_device: Whether they run on a device, as far as it alone tells.
        decode_rows: How many rows an int8 layer takes on a device without quantizing them.
        modules: Operator -> the module with a function of that name, imported when it is first called.
        device_type: The kind of device that it is for, `"cpu"` or `"cuda"`; None for any.
        workspaces: The module whose `workspace(operator, args, architecture)` tells the bytes that its kernels take
            besides arguments and results, for estimates; None if nobody has written that down.
        bound: Operators whose kernels bind themselves to a dispatch key of PyTorch when they are loaded.
    """

    name: str
    takes: Callable[..., bool]
    takes_device: Callable[[torch.device], bool]
    decode_rows: Callable[[torch.device], int]
    modules: Mapping[str, str] = field(default_factory=dict)
    device_type: str | None = None
    workspaces: str | None = None
    bound: frozenset[str] = frozenset()

    def workspace(self, operator: str, args: tuple[Any, ...], architecture: int | str | None) -> int:
        """Returns the most that an operator takes besides its arguments and results, in bytes; 0 if it is not known.

        Args:
            operator: Its name without the namespace.
            args: Its arguments; tensors on the meta device will do.
            architecture: The compute capability of a GPU (80 for 8.0) or AMD's name; None for a CPU.
        """
        if self.workspaces is None:
            return 0
        module = importlib.import_module(self.workspaces)
        return module.workspace(operator, args, architecture)

    def has(self, operator: str) -> bool:
        """Whether it has a kernel for an operator; asked before `takes`, which may have to load the kernels.

        Args:
            operator: Its name without the namespace.
        """
        return operator in self.modules or operator in self.bound

    def kernel(self, operator: str) -> Kernel:
        """Returns the kernel for an operator that it has.

        Args:
            operator: Its name without the namespace.
        """
        if operator in self.bound:  # the operator itself: once they are loaded, the dispatcher knows the way
            bound: Kernel = getattr(torch.ops.llmint8, operator).default
            return bound
        return _kernel(self.modules[operator], operator)


@functools.cache
def _kernel(module: str, operator: str) -> Kernel:
    kernel: Kernel = getattr(importlib.import_module(module), operator)
    return kernel


def _triton_takes(x: Tensor, *_: Any) -> bool:
    if x.is_cuda:
        return FORCED_BACKEND != "reference" and triton.runs_on(x.get_device() if x.device.type == "cuda" else None)
    return FORCED_BACKEND == "triton" and x.is_cpu


def _triton_takes_device(device: torch.device) -> bool:
    if device.type == "cuda":
        return FORCED_BACKEND != "reference" and triton.runs_on(device.index)
    return FORCED_BACKEND == "triton" and device.type == "cpu"


def _triton_decode_rows(device: torch.device) -> int:
    from llmint8.kernels.triton import tiles

    return tiles.tables(device).decode_rows


def _native_takes(*args: Any) -> bool:
    lists = (arg if isinstance(arg, list | tuple) else (arg,) for arg in args)
    tensors = [arg for items in lists for arg in items if isinstance(arg, Tensor)]
    return all(t.device.type == "cpu" and t.layout == torch.strided for t in tensors) and native.load()


def _int_mm_takes(x: Tensor, *_: Any) -> bool:
    return x.is_cpu


TRITON = Backend(
    "triton",
    takes=_triton_takes,
    takes_device=_triton_takes_device,
    decode_rows=_triton_decode_rows,
    modules={
        name: f"llmint8.kernels.triton.{name}"
        for name in ("int8_linear", "int8_linear_grad_input", "quantize_weight", "dequantize_weight")
    },
    device_type="cuda",
    workspaces="llmint8.kernels.triton.workspace",
)
NATIVE = Backend(
    "native",
    takes=_native_takes,
    takes_device=lambda device: device.type == "cpu" and native.load(),
    decode_rows=lambda device: DECODE_ROWS,
    device_type="cpu",
    workspaces="llmint8.kernels.cpu.workspace",
    bound=frozenset(
        {
            "attention",
            "decoder_layer",
            "float_linear",
            "gated_mlp",
            "int8_linear",
            "int8_linears",
            "quantize_weight",
            "rms_norm",
            "rotate",
        }
    ),
)
CPU = Backend(
    "cpu",
    takes=_int_mm_takes,
    takes_device=lambda device: device.type == "cpu",
    decode_rows=lambda device: DECODE_ROWS,
    modules={"int8_linear": "llmint8.kernels.cpu.int8_linear"},
    device_type="cpu",
)
# Plain PyTorch on any device: it has the fallbacks, which the operators bring themselves.
REFERENCE = Backend(
    "reference",
    takes=lambda *args: True,
    takes_device=lambda device: True,
    decode_rows=lambda device: DECODE_ROWS,
)

# In the order in which they are asked.
BACKENDS: tuple[Backend, ...] = (TRITON, NATIVE, CPU, REFERENCE)


def backend_of(device: torch.device | str) -> Backend:
    """Returns the backend whose int8 layers run on a device.

    Args:
        device: Any kind; `"cuda"` is the current one. Of a CPU, the native kernels are loaded now.
    """
    where = _with_index(device)
    return next(backend for backend in BACKENDS if backend.takes_device(where))


def decode_rows(device: torch.device | str) -> int:
    """Returns how many rows an int8 layer takes on a device without quantizing them.

    Up to so many rows, each has the same bits in any company, and no outlier column is searched for.

    Args:
        device: Any kind.
    """
    where = _with_index(device)
    return backend_of(where).decode_rows(where)


def _with_index(device: torch.device | str) -> torch.device:
    where = torch.device(device)
    is_any_gpu = where.type == "cuda" and where.index is None and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if is_any_gpu else where
