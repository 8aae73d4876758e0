"""Predicts the time of a layer on a GPU from its bytes and operations, for GPUs that were not measured."""

from dataclasses import dataclass

import typer
from harness.results import show

# Of its peak, what a kernel reaches: reading memory, cuBLAS in 16 bit, ours in int8. Figures of the field, see README.
READS, FLOAT_PRODUCTS, INT8_PRODUCTS = 0.85, 0.80, 0.65
LAUNCH_US = 2.0  # between kernels of a CUDA graph
# N, K and outlier columns: some of the hidden states, and the whole budget of 1/8 in a down projection.
SHAPES = ((4096, 4096, 32), (14336, 4096, 32), (4096, 14336, 1792))


@dataclass
class GPU:
    """Peaks by the vendor: dense 16-bit TFLOP/s with fp32 sums, int8 TOP/s, GB/s."""

    name: str
    tflops: float
    tops: float
    gigabytes: float


GPUS = (
    GPU("RTX 3090", 71, 284, 936),
    GPU("RTX 4090", 165, 660, 1008),
    GPU("A100 80 GB", 312, 624, 2039),
    GPU("H100 SXM", 989, 1979, 3350),
)


def microseconds(gpu: GPU, read: float, floating: float = 0, int8: float = 0, launches: int = 1) -> float:
    """Returns the time of kernels: of reading or of multiplying, whichever is longer, and of launching.

    Args:
        gpu: The GPU.
        read: Bytes read and written.
        floating: Operations in 16 bit.
        int8: Operations in int8.
        launches: Number of kernels.
    """
    memory = read / (gpu.gigabytes * READS * 1e3)
    products = floating / (gpu.tflops * FLOAT_PRODUCTS * 1e6) + int8 / (gpu.tops * INT8_PRODUCTS * 1e6)
    return max(memory, products) + launches * LAUNCH_US


def float_layer(gpu: GPU, m: int, n: int, k: int) -> float:
    """Microseconds of a 16-bit layer."""
    return microseconds(gpu, 2 * (n * k + m * k + m * n), floating=2 * m * n * k)


def int8_layer(gpu: GPU, m: int, n: int, k: int, outliers: int, decode_rows: int = 32) -> float:
    """Microseconds of ours, with outlier columns found at run time."""
    if m <= decode_rows:
        return microseconds(gpu, n * k + 2 * (m * k + m * n), floating=2 * m * n * k)
    preparing = microseconds(gpu, 2 * m * k + 2 * m * k + m * k, launches=3)  # fill, scores, codes
    read = n * k + m * k + 2 * m * n
    return preparing + microseconds(gpu, read, floating=2 * m * n * outliers, int8=2 * m * n * k)


def table() -> list[dict[str, object]]:
    """Returns the rows of the table of `kernels/README.md`."""
    rows = []
    for m in (1, 32, 512, 2048):
        for n, k, outliers in SHAPES:
            row: dict[str, object] = {"rows": m, "N x K": f"{n}x{k}", "outliers": outliers}
            for gpu in GPUS:
                ours, theirs = int8_layer(gpu, m, n, k, outliers), float_layer(gpu, m, n, k)
                row[gpu.name] = f"{ours:.0f} us ({theirs / ours:.1f}x)"
            rows.append(row)
    return rows


def main() -> None:
    """Prints the table."""
    show("predicted, not measured: time of a layer (speed against 16 bit)", table())


if __name__ == "__main__":
    typer.run(main)
