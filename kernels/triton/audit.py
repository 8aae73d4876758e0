"""Compiles every kernel in every tile for every architecture, without a GPU, and reads the machine code.

    python -m llmint8.kernels.triton.audit [--architectures 80 90] [--out audit.csv]

Fails if a kernel spills registers, does not fit shared memory, multiplies int8 without int8 tensor cores, or, on NVIDIA
GPUs, does not read the weight 16 bytes at a time (asynchronously, where that goes through shared memory).
"""

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.compile_only import SHARED_MEMORY, Binary, compile_only
from llmint8.kernels.triton.dequantize_weight import dequantize_weight
from llmint8.kernels.triton.int_mm_linear import int_mm_linear
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.quantize_rows import quantize_rows
from llmint8.kernels.triton.quantize_weight import quantize_weight
from llmint8.kernels.triton.weight_only_linear import weight_only_linear
from llmint8.outliers import OutlierRule

# Output features, and two numbers of input features: whole tiles of any size, and not; both whole pieces of 16 bytes.
N = 4096
K_EVEN, K_ODD = 4096, 4112
# Row kernels of one piece, of the largest piece, and of several pieces.
ROW_SIZES = (576, 4096, 14336, 28672)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FULL = OutlierRule("budget", threshold=5.0, budget=K_EVEN // 8, relative=True)
FEW = OutlierRule("budget", budget=32, relative=True)
PLAIN = OutlierRule("none", symmetric=True)
STATIC = OutlierRule("static", symmetric=True)

# The outlier columns of a small tile are less than 16 bytes a thread; each of three turns copies them once.
_OUTLIER_COPIES = 3
UNALIGNED = "unaligned"  # a weight whose rows do not start where 16 bytes can be read at once

INT8_MMA = re.compile(r"\b(IMMA\.\d+\.S8\.S8|IGMMA\.\S*S8|UTCIMMA|v_mfma_i32_\w*_i8|v_wmma_i32_\w*iu8)")
FLOAT_MMA = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|v_mfma_f32_\w*(?:f16|bf16)|v_wmma_f32_\w*)")


@dataclass(frozen=True)
class Row:
    """What the machine code of a kernel shows.

    Attributes:
        architecture: Compute capability, or AMD's name.
        kernel: Its name.
        case: The tile and what else the code depends on.
        warps: The warps of a program.
        registers: Registers that a thread takes.
        spills: Instructions that save or restore a register (AMD: registers that are saved).
        shared: Bytes of a program.
        limit: Bytes there are.
        mma: Tensor-core instructions, by kind.
        copies: Asynchronous copies to shared memory, all of them and those of 16 bytes.
        loads: Loads of 16 bytes, of the weight where it does not go through shared memory.
        fault: What is wrong, or nothing.
    """

    architecture: int | str
    kernel: str
    case: str
    warps: int
    registers: int
    spills: int
    shared: int
    limit: int
    mma: str
    copies: str
    loads: int
    fault: str


Case = tuple[str, Callable[[], object]]


def cases(architecture: int | str) -> Iterator[Case]:
    """Yields what to run on an architecture: together, every kernel in every tile."""
    tables = tiles.built_in(architecture)
    for most, tile in tables.mixed_linear or ():
        m = min(most, 4096)
        yield f"{_name(tile)} bf16", _linear(m, K_EVEN, "bf16", FULL)
        yield f"{_name(tile)} fp16 odd K", _linear(m, K_ODD, "fp16", FULL)
        yield f"{_name(tile)} fp16 few outliers, odd N", _linear(m, K_EVEN, "fp16", FEW, N + 1)
        yield f"{_name(tile)} fp32 odd K, N", _linear(m, K_ODD, "fp32", FULL, N + 1)
        yield f"{_name(tile)} fp32 few outliers", _linear(m, K_ODD, "fp32", FEW)
    if tables.mixed_linear:
        yield f"{_name(tables.mixed_linear[-1][1])} fp16 plain", _linear(4096, K_EVEN, "fp16", PLAIN)
    for dtype in DTYPES:
        if tables.mixed_linear:
            yield f"{_name(tiles.UNALIGNED)} {dtype} {UNALIGNED}", _linear(40, K_ODD + 1, dtype, FULL, N + 1)
        yield f"{_name(tiles.UNALIGNED)} {dtype} {UNALIGNED}", _weight_only_linear(40, K_ODD + 1, dtype)
    for most, tile in tables.weight_only_linear:
        for dtype, k in (("bf16", K_EVEN), ("fp16", K_ODD), ("fp32", K_ODD)):
            yield f"{_name(tile)} {dtype}", _weight_only_linear(min(most, 4096), k, dtype)
    for dtype, k in (("bf16", K_EVEN), ("fp16", K_ODD), ("fp32", K_ODD)):
        yield f"{_name(tables.one_row[0][1])} {dtype}", _weight_only_linear(1, k, dtype)
        yield dtype, _dequantize(dtype)
        yield dtype, _quantize(dtype)
    if tables.mixed_linear or tables.int_mm:
        for k in ROW_SIZES:
            use_int_mm = tables.int_mm
            yield f"rows of {k} fp16", _linear(512, k, "fp16", FULL, use_int_mm=use_int_mm)
            yield f"rows of {k} fp32", _linear(512, k, "fp32", STATIC, use_int_mm=use_int_mm)


def audit(architecture: int | str) -> list[Row]:
    """Compiles and reads the kernels of one architecture, each code once."""
    rows = {}
    with compile_only(architecture) as launches:
        for case, run in cases(architecture):
            launches.clear()
            try:
                run()
            except triton.runtime.errors.OutOfResources as error:
                fault = f"does not fit: {error}"
                rows[case] = Row(architecture, "?", case, 0, 0, 0, 0, SHARED_MEMORY[architecture], "", "", 0, fault)
            for launch in launches:
                rows.setdefault(launch.binary.metadata.hash, read(architecture, launch.binary, case))
    return list(rows.values())


def read(architecture: int | str, binary: Binary, case: str) -> Row:
    """Reads the machine code of a kernel."""
    if "cubin" in binary.files:
        usage = _cuobjdump("-res-usage", binary.files["cubin"])
        code = _cuobjdump("-sass", binary.files["cubin"])
        registers = int(re.search(r"REG:(\d+)", usage).group(1))  # type: ignore[union-attr]
        spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    else:
        code = binary.files["amdgcn"].read_text(encoding="utf-8")
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", code).group(1))  # type: ignore[union-attr]
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", code).group(1))  # type: ignore[union-attr]
    int8, floating = len(INT8_MMA.findall(code)), len(FLOAT_MMA.findall(code))
    copies = re.findall(r"\bLDGSTS\.(\S*)", code)
    wide = sum(copy.rstrip(";").endswith("128") for copy in copies)
    # Of the kernels that read the weight past shared memory, only those loads are evicted first.
    first = r"EF\S*" if binary.name in ("one_row_kernel", "weight_only_linear_kernel") else ""
    loads = len(re.findall(rf"\bLDG\.\S*{first}128|global_load_(?:b128|dwordx4)|buffer_load_(?:b128|dwordx4)", code))
    row = Row(
        architecture,
        binary.name.removesuffix("_kernel"),
        case,
        binary.metadata.num_warps,
        registers,
        spills,
        binary.metadata.shared,
        SHARED_MEMORY[architecture],
        " ".join(f"{count} {kind}" for kind, count in (("int8", int8), ("float", floating)) if count),
        f"{len(copies)} ({wide} of 16 bytes)" if copies else "",
        loads,
        "",
    )
    return Row(**{**asdict(row), "fault": _fault(row, int8, len(copies), wide)})


def _fault(row: Row, int8: int, copies: int, wide: int) -> str:
    nvidia = isinstance(row.architecture, int)
    faults = []
    if row.spills:
        faults.append(f"{row.spills} spills")
    if row.shared > row.limit:
        faults.append("too much shared memory")
    if row.kernel == "mixed_linear" and not int8:
        faults.append("no int8 tensor cores")
    if row.case.endswith(UNALIGNED) or not nvidia:
        pass  # nothing more can be asked of it
    elif row.kernel in ("mixed_linear", "weight_only_linear") and row.architecture != 75:
        if copies - wide > (_OUTLIER_COPIES if row.kernel == "mixed_linear" else 0) or not wide:
            faults.append("copies of less than 16 bytes")
    elif row.kernel in ("one_row", "dequantize_weight", "weight_only_linear") and not row.loads:
        faults.append("loads of less than 16 bytes")
    return ", ".join(faults)


def _name(tile: tiles.Tile) -> str:
    k = f"{tile.unroll}x{tile.block_k}" if tile.unroll > 1 else str(tile.block_k)
    return f"{tile.block_m}x{tile.block_n}x{k} s{tile.num_stages}"


def _linear(
    m: int, k: int, dtype: str, rule: OutlierRule, n: int = N, use_int_mm: bool = False
) -> Callable[[], object]:
    """What `int8_linear` runs for a prompt."""

    def run() -> object:
        x, bias = torch.empty(m, k, dtype=DTYPES[dtype]), torch.empty(n, dtype=DTYPES[dtype])
        weight, scale = torch.empty(n, k, dtype=torch.int8), torch.empty(n, 1)
        columns = torch.arange(32) if rule is STATIC else None
        rows = quantize_rows(x, columns, rule, use_int_mm)
        multiply = int_mm_linear if use_int_mm else mixed_linear
        return multiply(x, rows, weight, scale, None if rule is PLAIN else bias)

    return run


def _weight_only_linear(m: int, k: int, dtype: str) -> Callable[[], object]:
    x, bias = torch.empty(m, k, dtype=DTYPES[dtype]), torch.empty(N, dtype=DTYPES[dtype])
    return lambda: weight_only_linear(x, torch.empty(N, k, dtype=torch.int8), torch.empty(N, 1), bias)


def _dequantize(dtype: str) -> Callable[[], object]:
    return lambda: dequantize_weight(torch.empty(N, K_EVEN, dtype=torch.int8), torch.empty(N, 1), DTYPES[dtype])


def _quantize(dtype: str) -> Callable[[], object]:
    return lambda: quantize_weight(torch.empty(N, K_EVEN, dtype=DTYPES[dtype]))


def _cuobjdump(option: str, path: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Prints the table, writes it, and exits with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="Reads the machine code of every kernel in every tile.")
    names = [str(architecture) for architecture in SHARED_MEMORY]
    usual = [name for name in names if name not in ("87", "121")]  # whose code is that of 86 and of 120
    parser.add_argument("--architectures", nargs="+", choices=names, default=usual)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once")
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args()
    architectures = [int(name) if name.isdigit() else name for name in arguments.architectures]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [row for found in pool.map(audit, architectures) for row in found]
    header = list(asdict(rows[0]))
    table = [header, *([str(value) for value in asdict(row).values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(table)
    faults = sum(bool(row.fault) for row in rows)
    print(f"{len(rows)} kernels, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
