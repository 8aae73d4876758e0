"""Tile sizes by architecture and number of rows: a table, so that the first call is as quick as the others.

Where the figures come from: `kernels/README.md`. `tuning.py` replaces them by what is measured on a GPU.
"""

import functools
import json
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from llmint8.runtime.user_cache import cache_folder

# Bytes that a thread reads at once.
ALIGNMENT = 16
# Tiles below each other that share a piece of the weight.
GROUP_M = 8
# Longer rows do not fit registers.
LARGEST_ROW = 16384
# Up to so many rows, reading the weight takes longer than 16-bit arithmetic on every GPU with tensor cores in Triton.
DECODE_ROWS = 32


@dataclass(frozen=True)
class Tile:
    """What a program computes, and with what.

    Attributes:
        block_m: Rows of x.
        block_n: Output features.
        block_k: Input features of a product.
        num_warps: Warps (of 32 threads) of a program.
        num_stages: Turns of the loop whose data are on the way at once, the current one included.
        unroll: Products in a turn of the loop.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    unroll: int = 1

    def options(self, architecture: int | str) -> dict[str, Any]:
        """Returns the launch options.

        Args:
            architecture: As `architecture` gives it.
        """
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        if isinstance(architecture, int):
            # Left alone, ptxas saves registers that nothing else would use, and spills some.
            options["maxnreg"] = min(65536 // (32 * self.num_warps), 255)
        return options

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes, as the arguments of a matrix product."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "GROUP_M": GROUP_M}


# More rows than there can be.
ANY = 1 << 31
# (largest M, tile) in ascending order; the last tile serves every larger M, too.
Table = tuple[tuple[int, Tile], ...]

# fp32 inputs have the tile of at most so many rows.
FP32_ROWS = 256
# Of products with a weight whose rows cannot be read 16 bytes at a time: single bytes take many registers.
UNALIGNED = Tile(32, 32, 32, 4, 2)
# Of `dequantize_weight`, and of what comes after torch._int_mm.
DEQUANTIZE = Tile(1, 16, 256, 4, 1)
SCALE_PRODUCT = Tile(32, 64, 16, 4, 1)
# Of `gather_outliers`.
GATHER = Tile(1, 32, 64, 4, 1)

_AMPERE: Table = (
    (64, Tile(64, 64, 64, 4, 4, 2)),
    (256, Tile(64, 128, 64, 4, 3, 2)),
    (ANY, Tile(128, 128, 32, 4, 4, 2)),
)
_ADA: Table = (*_AMPERE[:2], (512, Tile(128, 128, 32, 4, 4, 2)), (ANY, Tile(256, 128, 32, 8, 3, 2)))
_HOPPER: Table = (  # measured on an H100, as its other tables
    (64, Tile(64, 32, 256, 4, 5)),
    (128, Tile(64, 64, 256, 4, 3)),
    (256, Tile(128, 64, 256, 8, 4)),
    (512, Tile(128, 64, 128, 8, 3)),
    (ANY, Tile(256, 128, 128, 8, 3)),
)
_BLACKWELL: Table = (
    (64, Tile(64, 64, 256, 4, 3)),
    (256, Tile(64, 128, 128, 4, 4)),
    (ANY, Tile(128, 128, 128, 8, 4)),
)
_RTX_50: Table = (
    (64, Tile(64, 64, 128, 4, 4)),
    (256, Tile(64, 128, 64, 4, 4)),
    (ANY, Tile(128, 128, 128, 8, 3)),
)
_CDNA: Table = ((64, Tile(64, 64, 64, 4, 2)), (ANY, Tile(128, 128, 64, 8, 2)))
_RDNA: Table = ((ANY, Tile(64, 64, 64, 4, 2)),)

# Of `mixed_linear`. Architectures that are not here have no int8 tensor cores that Triton reaches and are worth it:
# sm_75 multiplies with torch._int_mm, and sm_103, whose int8 is slower than its 16 bit, always in 16 bit.
MIXED_LINEAR: dict[int | str, Table] = {
    80: _AMPERE,
    86: _AMPERE,
    87: _AMPERE,
    89: _ADA,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _RTX_50,
    121: _RTX_50,
    "gfx942": _CDNA,
    "gfx1100": _RDNA,
}
WEIGHT_ONLY_LINEAR: Table = (
    (16, Tile(16, 32, 64, 4, 6, 2)),
    (32, Tile(32, 64, 64, 4, 4)),
    (128, Tile(64, 64, 64, 4, 4)),
    (ANY, Tile(128, 128, 32, 8, 3, 2)),
)
_HOPPER_WEIGHT_ONLY: Table = (
    (16, Tile(16, 32, 128, 4, 6)),
    (64, Tile(32, 32, 128, 4, 5)),
    (128, Tile(64, 64, 64, 4, 4, 2)),
    (ANY, Tile(128, 64, 64, 8, 4, 2)),
)
_AMD_WEIGHT_ONLY: Table = ((16, Tile(16, 32, 32, 4, 2)), (ANY, Tile(32, 32, 32, 4, 2)))
# Triton has no tensor cores at all on sm_75.
_TURING: Table = ((16, Tile(16, 32, 64, 4, 1)), (ANY, Tile(32, 64, 32, 4, 1)))
ONE_ROW: Table = ((ANY, Tile(1, 4, 1024, 4, 1)),)
_HOPPER_ONE_ROW: Table = ((ANY, Tile(1, 1, 1024, 2, 1)),)


@dataclass(frozen=True)
class Tables:
    """The tiles of a GPU.

    Attributes:
        mixed_linear: None if the GPU has no int8 tensor cores that are worth it.
        weight_only_linear: For several rows.
        one_row: For one row, by the number of output features.
        decode_rows: Up to so many rows, the input is not quantized.
        dequantize: Whether, above that, the weight is dequantized for each call and PyTorch multiplies in 16 bit: where
            int8 tensor cores gain less than scores and quantization cost.
        int_mm: Whether PyTorch multiplies int8 where Triton does not reach the tensor cores.
    """

    mixed_linear: Table | None
    weight_only_linear: Table = WEIGHT_ONLY_LINEAR
    one_row: Table = ONE_ROW
    decode_rows: int = DECODE_ROWS
    dequantize: bool = False
    int_mm: bool = False

    def to_json(self) -> str:
        """Returns the tables as JSON."""
        return json.dumps(asdict(self), indent=1)

    def _check(self) -> None:
        for table in filter(None, (self.mixed_linear, self.weight_only_linear, self.one_row)):
            limits = [most for most, _ in table]
            if limits != sorted(limits) or limits[-1] < ANY:
                raise ValueError(f"the numbers of rows must ascend to {ANY}, got {limits}")
            for _, tile in table:
                sizes = asdict(tile)
                powers = {name: n for name, n in sizes.items() if name.startswith("block") or name == "num_warps"}
                if any(type(n) is not int or n < 1 for n in sizes.values()) or any(n & n - 1 for n in powers.values()):
                    raise ValueError(f"sizes must be powers of two, got {tile}")
        if (
            not (self.weight_only_linear and self.one_row and isinstance(self.decode_rows, int))
            or not isinstance(self.dequantize, bool)
            or not isinstance(self.int_mm, bool)
            or self.mixed_linear == ()
        ):
            raise ValueError(
                "a table is empty, decode_rows is no number, or dequantize or int_mm is neither true nor false"
            )

    def updated_from_json(self, text: str) -> Self:
        """Returns what `to_json` wrote; where it has no such field, as an older one, the one of these tables.

        Raises:
            ValueError: The text is something else.
        """
        try:
            fields = json.loads(text)
            for name, table in fields.items():
                if isinstance(table, list):
                    fields[name] = tuple((int(most), Tile(**tile)) for most, tile in table)
            found = replace(self, **fields)
            found._check()
            return found
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a table of tiles: {error!r}") from error


def find(table: Table, size: int) -> Tile:
    """Returns the tile for a size, M or N."""
    return next(tile for most, tile in table if size <= most)


def is_aligned(x: Tensor) -> bool:
    """Whether the rows of a matrix, themselves contiguous, can be read 16 bytes at a time."""
    size = x.element_size()
    return not (x.shape[1] * size % ALIGNMENT or x.stride(0) * size % ALIGNMENT or x.data_ptr() % ALIGNMENT)


def row_tile(k: int) -> Tile:
    """Returns the tile of kernels that hold a row in registers, up to 32 features a thread, or a piece of it."""
    if k > LARGEST_ROW:
        return Tile(1, 1, LARGEST_ROW // 4, 8, 1)
    block = max(32, 1 << (k - 1).bit_length())
    return Tile(1, 1, block, min(max(block // 512, 4), 16), 1)


def built_in(architecture: int | str) -> Tables:
    """Returns the tiles of an architecture.

    Args:
        architecture: Compute capability (80 for 8.0), or AMD's name.
    """
    if architecture == 75:
        return Tables(None, _TURING, decode_rows=16, int_mm=True)
    if architecture == 90:
        return Tables(_HOPPER, _HOPPER_WEIGHT_ONLY, _HOPPER_ONE_ROW, decode_rows=256, dequantize=True)
    if isinstance(architecture, str):
        return Tables(MIXED_LINEAR.get(architecture), _AMD_WEIGHT_ONLY)
    return Tables(MIXED_LINEAR.get(architecture))


def tables(device: torch.device) -> Tables:
    """Returns the tiles for a device: those tuned on it by this user, or the ones of its architecture."""
    return _tables(architecture(device), device.index if device.type == "cuda" else None)


def architecture(device: torch.device) -> int | str:
    """Returns the compute capability (80 for 8.0) or AMD's name of the architecture.

    Args:
        device: A GPU; of a CPU, where kernels are interpreted or compiled for a GPU that is not there, the
            architecture that Triton compiles for.
    """
    if device.type == "cuda":
        return _architecture(device.index)
    from triton import knobs  # the tables themselves need no Triton
    from triton.runtime import driver

    return 80 if knobs.runtime.interpret else driver.active.get_current_target().arch


def tuned_path(name: str) -> Path:
    """Returns the file with the tiles that were tuned on a GPU.

    Args:
        name: What PyTorch calls the GPU.
    """
    return cache_folder() / "tiles" / (re.sub(r"\W+", "-", name) + ".json")


@functools.cache
def _architecture(index: int) -> int | str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def _tables(architecture: int | str, index: int | None) -> Tables:
    tables = built_in(architecture)
    if index is not None and (path := tuned_path(torch.cuda.get_device_name(index))).is_file():
        try:
            return tables.updated_from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            warnings.warn(f"{path} is not used, delete it or tune again: {error}", stacklevel=2)
    return tables
