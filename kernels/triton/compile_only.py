"""A Triton device that compiles for any GPU and launches nothing: to read the machine code, and to count launches."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.runtime import driver

# Shared memory of a program, in bytes (CUDA programming guide, table of compute capabilities; AMD: LDS).
SHARED_MEMORY: dict[int | str, int] = {
    75: 65536,
    80: 166912,
    86: 101376,
    87: 166912,
    89: 101376,
    90: 232448,
    100: 232448,
    103: 232448,
    120: 101376,
    121: 101376,
    "gfx942": 65536,
    "gfx1100": 65536,
}


@dataclass
class Binary:
    """A compiled kernel.

    Attributes:
        name: The name of the kernel.
        metadata: Triton's: `shared` bytes, `num_warps` and more.
        files: Each level of code by its suffix: `ptx`, `cubin`, `amdgcn` and more.
    """

    name: str
    metadata: Any
    files: dict[str, Path]


@dataclass
class Launch:
    """A launch that was asked for.

    Attributes:
        binary: What would run.
        grid: Number of programs in each direction.
    """

    binary: Binary
    grid: tuple[int, int, int]


class _Utils:
    def __init__(self, driver: "_Driver") -> None:
        self._driver = driver

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return (
            object(),
            Binary(name, self._driver.loading, {}),
            0,
            0,
            1024,
        )  # module, function, registers, spills, threads

    def unload_module(self, module: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self._driver.target.arch]}


class _Driver(GPUDriver):
    """Looks like a GPU to Triton's compiler and launcher."""

    def __init__(self, target: GPUTarget, launches: list[Launch]) -> None:
        self.target, self.launches, self.loading = target, launches, None
        self.utils = _Utils(self)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        self.loading = metadata
        return self._launch

    @staticmethod
    def _launch(x: int, y: int, z: int, stream: int, binary: Binary, *args: Any) -> None:
        driver.active.launches.append(Launch(binary, (x, y, z)))  # a compiled kernel outlives the driver it met first

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps the compiled kernels of a device under its number.
        return -1 - list(SHARED_MEMORY).index(self.target.arch)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing runs here, so that nothing can be timed")


@contextlib.contextmanager
def compile_only(architecture: int | str) -> Iterator[list[Launch]]:
    """Compiles the Triton kernels that are launched, for a GPU that need not be there, instead of launching them.

    Args:
        architecture: Compute capability (80 for 8.0), or AMD's name of the architecture; a key of `SHARED_MEMORY`.

    Yields:
        The launches, in order; what the tensors hold does not matter.

    Raises:
        triton.runtime.errors.OutOfResources: At a launch whose kernel does not fit the GPU.
    """
    if isinstance(architecture, int):
        target = GPUTarget("cuda", architecture, 32)
    else:
        target = GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)
    launches: list[Launch] = []

    def loaded(module: Any, binary: Binary, name: str, files: dict[str, str], hash: str) -> None:
        binary.files = {Path(path).suffix[1:]: Path(path) for path in files.values()}

    active = driver._active
    driver.set_active(_Driver(target, launches))
    knobs.runtime.kernel_load_end_hook.add(loaded)
    try:
        yield launches
    finally:
        driver._active = active
        knobs.runtime.kernel_load_end_hook.remove(loaded)
