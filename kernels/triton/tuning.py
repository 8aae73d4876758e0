"""Times tiles on the GPU that is here and keeps the best ones for this user; the file can be given to others.

python -m llmint8.kernels.triton.tuning [--shapes 4096x4096 14336x4096]
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from triton.runtime.errors import TritonError
from triton.testing import do_bench

from llmint8.kernels.triton import tiles
from llmint8.kernels.triton.mixed_linear import mixed_linear
from llmint8.kernels.triton.quantize_rows import quantize_rows
from llmint8.kernels.triton.tiles import Table, Tables, Tile
from llmint8.kernels.triton.weight_only_linear import weight_only_linear
from llmint8.outliers import OutlierRule

# Up to how many rows a tile is used, and the number of rows it is timed with.
MIXED_ROWS = ((64, 64), (256, 256), (512, 512), (tiles.ANY, 2048))
WEIGHT_ONLY_ROWS = ((16, 16), (32, 32), (128, 128), (tiles.ANY, 1024))
SHAPES = ("4096x4096", "1024x4096", "14336x4096", "4096x14336")

ONE_ROW = [Tile(1, n, k, warps, 1) for n in (1, 2, 4, 8, 16) for k in (512, 1024, 2048) for warps in (2, 4, 8)]

Weights = list[tuple[torch.Tensor, torch.Tensor]]


def candidates(table: Table) -> list[Tile]:
    """Returns the tiles of a table and their neighbours in warps, stages and depth."""
    found = {tile: None for _, tile in table}
    for tile in list(found):
        for warps in (4, 8):
            for stages in range(2, 6):
                for k in (tile.block_k // 2, tile.block_k, tile.block_k * 2):
                    if k >= 32:
                        found[Tile(tile.block_m, tile.block_n, k, warps, stages, tile.unroll)] = None
    return list(found)


def fastest(tried: Iterable[Tile], run: Callable[[Tile], list[float]]) -> Tile:
    """Returns the tile with the smallest geometric mean of times; tiles that do not fit the GPU are passed over.

    Args:
        tried: At least one that fits.
        run: Gives the milliseconds of a tile for each shape.

    Raises:
        RuntimeError: None fits.
    """
    times = {}
    for tile in tried:
        try:
            times[tile] = statistics.geometric_mean(run(tile))
        except TritonError:  # too large, or too many registers
            continue
    if not times:
        raise RuntimeError("no tile fits this GPU")
    return min(times, key=lambda tile: times[tile])


def tune(shapes: Iterable[tuple[int, int]], device: torch.device, report: Callable[[str], None]) -> Tables:
    """Times tiles of every kind.

    Args:
        shapes: N and K of weights.
        device: A GPU.
        report: Gets a line for each choice.
    """
    built_in, weights = tiles.built_in(tiles.architecture(device)), []
    for n, k in shapes:
        codes = torch.randint(-127, 128, (n, k), device=device, dtype=torch.int8)
        weights.append((codes, torch.rand(n, 1, device=device)))

    def choose(name: str, rows: tuple[tuple[int, int], ...], tried: list[Tile], timer: Callable) -> Table:
        chosen = []
        for most, m in rows:
            tile = fastest(tried, lambda tile, m=m: timer(tile, m, weights))  # type: ignore[misc]
            report(f"{name}, {m} rows: {tile}")
            chosen.append((most, tile))
        return tuple(chosen)

    mixed, weight_only = built_in.mixed_linear, built_in.weight_only_linear
    return replace(
        built_in,
        mixed_linear=mixed and choose("mixed_linear", MIXED_ROWS, candidates(mixed), _time_mixed),
        weight_only_linear=choose("weight_only_linear", WEIGHT_ONLY_ROWS, candidates(weight_only), _time_weight_only),
        one_row=choose("one_row", ((tiles.ANY, 1),), ONE_ROW, _time_weight_only),
    )


def save(tables: Tables, path: Path) -> None:
    """Writes the tables where `tiles.tables` finds them, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(tables.to_json(), encoding="utf-8")
    unfinished.replace(path)


def _time_mixed(tile: Tile, m: int, weights: Weights) -> list[float]:
    times = []
    for codes, scale in weights:
        x = torch.randn(m, codes.shape[1], device=codes.device)
        rows = quantize_rows(x, None, OutlierRule("budget", budget=32, relative=True))
        for dtype in (torch.bfloat16, torch.float32)[: 1 + (m <= tiles.FP32_ROWS)]:  # must fit, too, for any N
            mixed_linear(x.to(dtype), rows, codes[1:], scale[1:], None, tile)
        x = x.half()
        times.append(_time(partial(mixed_linear, x, rows, codes, scale, None, tile)))
    return times


def _time_weight_only(tile: Tile, m: int, weights: Weights) -> list[float]:
    times = []
    for codes, scale in weights:
        x = torch.randn(m, codes.shape[1], device=codes.device)
        for dtype in (torch.bfloat16, torch.float32):
            weight_only_linear(x.to(dtype), codes[1:], scale[1:], None, tile)
        x = x.half()
        times.append(_time(partial(weight_only_linear, x, codes, scale, None, tile)))
    return times


def _time(call: Callable[[], object]) -> float:
    return do_bench(call, warmup=5, rep=20, return_mode="median")


def main() -> None:
    """Tunes the current GPU, and says where the result lies."""
    parser = argparse.ArgumentParser(description="Times tiles on this GPU and keeps the best ones.")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="NxK of the weights")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was tuned")
        return
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    device = torch.device("cuda", torch.cuda.current_device())
    path = tiles.tuned_path(torch.cuda.get_device_name(device))
    save(tune(shapes, device, print), path)  # type: ignore[arg-type]
    print(f"wrote {path}, which is used from the next start on")


if __name__ == "__main__":
    main()
