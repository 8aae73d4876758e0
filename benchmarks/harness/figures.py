"""Figures of what is in the CSV, each for a light and a dark page."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from harness.models import products
from harness.results import Row, latest
from harness.tables import OURS, Figures, by_model

THEMES = {
    "light": {"text": "#24292f", "grid": "#d0d7de", "ground": "#ffffff"},
    "dark": {"text": "#e6edf3", "grid": "#3d444d", "ground": "#0d1117"},
}
COLOURS = {
    "llmint8": {"light": "#0969da", "dark": "#58a6ff"},
    "llmint8, 8-bit head": {"light": "#80ccff", "dark": "#1158c7"},
    "transformers bf16": {"light": "#bc4c00", "dark": "#f0883e"},
    "bitsandbytes": {"light": "#1a7f37", "dark": "#3fb950"},
}
OTHER = {"light": "#8c959f", "dark": "#7d8590"}
MARKERS = {"llmint8": "o", "transformers bf16": "s", "bitsandbytes": "^"}
KEPT = ("speed-",)  # of those in the repository
WIDTH, HEIGHT = 8.4, 3.6  # inches, as wide as a README
Draw = Callable[[Figure, Sequence[Row], str], None]


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws every figure whose benchmark is among some rows.

    Args:
        rows: Rows of the CSV.
        folder: For the SVG files, `NAME-light.svg` and `NAME-dark.svg`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (benchmark, draw) in FIGURES.items():
        chosen = latest(row for row in rows if row.benchmark == benchmark)
        for theme in THEMES if chosen else ():
            with mpl.rc_context(_style(theme)):
                figure = plt.figure(figsize=(WIDTH, HEIGHT), layout="constrained")
                draw(figure, chosen, theme)
                files.append(folder / f"{name}-{theme}.svg")
                figure.savefig(files[-1], metadata={"Date": None, "Creator": None})
                plt.close(figure)
    return files


def texts(file: Path) -> list[str]:
    """Returns what is written in an SVG file, in its order."""
    found = ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")
    return [" ".join("".join(element.itertext()).split()) for element in found]


def speed(figure: Figure, rows: Sequence[Row], theme: str) -> None:
    """Bars of the largest model of the main table: prefill, decode, and the weights in memory."""
    name, figures = max(by_model(rows).items(), key=lambda model: model[1].median(OURS, "weights") or 0)
    panels = [
        ("prefill, tokens/s", "prefill", figures.settings("prefill")[0], 1.0),
        ("decode, tokens/s", "decode", figures.settings("decode")[0], 1.0),
        ("weights in memory, GB", "weights", "", 1e-9),
    ]
    systems = [system for system in figures.systems if system not in figures.failures][::-1]
    figure.suptitle(f"{name} on {rows[0].device}", fontsize=11)
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, name, setting, scale) in zip(axes, panels, strict=True):
        values = [(figures.median(system, name, setting) or 0) * scale for system in systems]
        bars = axis.barh(systems, values, color=[_colour(system, theme) for system in systems], height=0.7)
        axis.bar_label(bars, [f"{value:.3g}" if value else "-" for value in values], padding=3)
        axis.set_title(title)
        axis.set_xlim(0, 1.25 * max(values))
        axis.xaxis.set_visible(False)
        axis.grid(visible=False)
        axis.spines["bottom"].set_visible(False)


def model_size(figure: Figure, rows: Sequence[Row], theme: str) -> None:
    """Decoding against the size of the model, with what reading its weights allows."""
    axis = figure.subplots()
    models = by_model([row for row in rows if row.figure != "layer"])
    for system in _systems(rows):
        points = [
            (figures.median(system, "weights read in a step"), figures.median(system, "decode", "batch=1"), figures)
            for figures in models.values()
        ]
        found = sorted((weights / 1e9, speed, each) for weights, speed, each in points if weights and speed)
        _line(axis, [p[0] for p in found], [p[1] for p in found], system, theme)
    limits = [
        (weights / 1e9, loop / (weights / 1e9))
        for figures in models.values()
        for system in _systems(rows)
        if (weights := figures.median(system, "weights read in a step"))
        and (loop := figures.median("limit", "read loop"))
    ]
    _limit(axis, sorted(limits), "what a loop that reads the weights allows", theme)
    _label(
        axis, "weights read for a token, GB", "tokens/s", "Decoding one sequence, Llamas of 0.1 to 3 billion weights"
    )


def prompt_length(figure: Figure, rows: Sequence[Row], theme: str) -> None:
    """Prefill against the length of the prompt, with what the products of the layers allow."""
    axis = figure.subplots()
    name, figures = _of_setting(rows, "prefill")
    for system in _systems(rows):
        points = _points(figures, system, "prefill", "prompt=")
        _line(axis, *points, system, theme)
    for limit, label in (
        ("int8 product", "int8 products alone (torch._int_mm)"),
        ("bf16 product", "bf16 products alone"),
    ):
        if (operations := figures.median("limit", limit)) and (needed := products(name)):
            allowed = operations * 1e9 / (2 * needed)
            _limit(axis, [(x, allowed) for x in _points(figures, OURS, "prefill", "prompt=")[0]], label, theme)
    _label(axis, "tokens of the prompt", "tokens/s", f"Prefill, {name}")
    axis.set_yscale("linear")
    axis.set_ylim(bottom=-0.25 * axis.get_ylim()[1])
    axis.set_yticks([tick for tick in axis.get_yticks() if tick >= 0])
    axis.legend(fontsize=9, loc="lower center", ncols=3)


def batch(figure: Figure, rows: Sequence[Row], theme: str) -> None:
    """Decoding against the batch, with what reading the weights once a step allows."""
    axis = figure.subplots()
    name, figures = _of_setting(rows, "decode")
    for system in _systems(rows):
        _line(axis, *_points(figures, system, "decode", "batch="), system, theme)
    weights, loop = figures.median(OURS, "weights read in a step"), figures.median("limit", "read loop")
    operations = figures.median("limit", "int8 product")
    if weights and loop and operations and (needed := products(name)):
        most = operations * 1e9 / (2 * needed)
        limit = [(x, min(x * loop * 1e9 / weights, most)) for x in _points(figures, OURS, "decode", "batch=")[0]]
        _limit(axis, limit, "what reading int8 weights and int8 products allow", theme)
    _label(axis, "sequences decoded together", "tokens/s of all", f"Decoding a batch, {name}")


def layer_width(figure: Figure, rows: Sequence[Row], theme: str) -> None:
    """One square layer against its width: the bytes it reads with one row, its operations with 256."""
    left, right = figure.subplots(1, 2)
    (figures,) = by_model([row for row in rows if row.figure == "layer"]).values()
    machine = Figures(row for row in rows if row.system == "limit")
    bytes_of = {OURS: 1, "transformers bf16": 2}
    for system, each in bytes_of.items():
        for axis, rows_, unit in ((left, 1, each), (right, 256, 2 * 256)):
            points = [
                (width, unit * width**2 / 1e9 / seconds)
                for width in sorted({int(s.split()[0].removeprefix("width=")) for s in figures.settings("layer")})
                if (seconds := figures.median(system, "layer", f"width={width} rows={rows_}"))
            ]
            _line(axis, [p[0] for p in points], [p[1] for p in points], system, theme)
    widths = left.lines[0].get_xdata()
    for axis, limit, label in (
        (left, "read loop", "a loop that reads"),
        (right, "int8 product", "torch._int_mm, large"),
        (right, "bf16 product", "bf16 product, large"),
    ):
        if value := machine.median("limit", limit):
            _limit(axis, [(widths[0], value), (widths[-1], value)], label, theme)
    _label(left, "input and output features", "GB/s of weights", "A layer, 1 row")
    _label(right, "input and output features", "GOP/s", "A layer, 256 rows")
    for axis in (left, right):
        axis.set_yscale("linear")
        axis.set_ylim(bottom=0)


# File name -> benchmark and how it is drawn.
FIGURES: dict[str, tuple[str, Draw]] = {
    "speed": ("compare", speed),
    "model-size": ("growth", model_size),
    "prompt-length": ("growth", prompt_length),
    "batch": ("growth", batch),
    "layer-width": ("growth", layer_width),
}


def _style(theme: str) -> dict[str, Any]:
    colours = THEMES[theme]
    return {
        "svg.hashsalt": "llmint8",  # the same figures make the same files
        "svg.fonttype": "none",  # text as text: it can be read, searched, and checked
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; a reader without it gets a sans-serif of theirs
        "font.size": 10,
        "axes.titlesize": 11,
        "text.color": colours["text"],
        "axes.labelcolor": colours["text"],
        "axes.edgecolor": colours["grid"],
        "xtick.color": colours["text"],
        "ytick.color": colours["text"],
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "axes.facecolor": colours["ground"],
        "figure.facecolor": colours["ground"],
        "savefig.facecolor": colours["ground"],
        "axes.grid": True,
        "grid.color": colours["grid"],
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }


def _systems(rows: Sequence[Row]) -> list[str]:
    return [s for s in dict.fromkeys(row.system for row in rows if row.figure != "layer") if s != "limit"]


def _of_setting(rows: Sequence[Row], figure: str) -> tuple[str, Figures]:
    """The model that a figure was measured on at most sizes."""
    models = by_model([row for row in rows if row.figure != "layer"])
    return max(models.items(), key=lambda item: len(item[1].settings(figure)))


def _points(figures: Figures, system: str, figure: str, prefix: str) -> tuple[list[float], list[float]]:
    found = [
        (float(setting.removeprefix(prefix)), value)
        for setting in figures.settings(figure)
        if (value := figures.median(system, figure, setting)) is not None
    ]
    return [x for x, _ in sorted(found)], [y for _, y in sorted(found)]


def _line(axis: Any, x: Sequence[float], y: Sequence[float], system: str, theme: str) -> None:
    axis.plot(x, y, color=_colour(system, theme), marker=MARKERS.get(system, "d"), markersize=5, label=system)


def _limit(axis: Any, points: Sequence[tuple[float, float]], label: str, theme: str) -> None:
    style = ("--", ":")[sum(line.get_linestyle() in ("--", ":") for line in axis.lines) % 2]
    x, y = [p[0] for p in points], [p[1] for p in points]
    axis.plot(x, y, linestyle=style, linewidth=1.2, color=THEMES[theme]["text"], label=label)


def _label(axis: Any, x: str, y: str, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title)
    axis.legend(fontsize=9)


def _colour(system: str, theme: str) -> str:
    return COLOURS.get(system, OTHER)[theme]
