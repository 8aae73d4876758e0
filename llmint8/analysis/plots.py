"""Plots of outliers and of layer errors, as PNG or SVG."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmint8.analysis.layer_errors import LayerError
from llmint8.analysis.outlier_report import InputOutliers, OutlierReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SUFFIXES = (".png", ".svg")
_WIDTH = 9.0  # inches: that of a README
_KINDS = 8  # more lines or rows than this cannot be told apart
_FEATURES = 12
_TITLE: dict[str, Any] = {"fontsize": 9, "loc": "left", "pad": 4}


def plot_outliers(report: OutlierReport, path: str | os.PathLike[str]) -> Path:
    """Draws where the outliers of a model are: columns per layer, and the most frequent features over the layers.

    Args:
        report: What `outlier_report` returned.
        path: A .png or .svg file, in a folder that exists; overwritten.

    Returns:
        The path.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The suffix is another one.
    """
    file = checked_path(path)
    blocks = list(dict.fromkeys(i.block for i in report.inputs))
    kinds = _most_frequent([i.kind for i in report.inputs])
    hidden = [i for i in report.inputs if i.is_hidden]
    features = _top_features(hidden)
    unit = " x rms" if report.relative else ""

    heights = [*([0.9] * len(kinds)), 0.8 + 0.24 * max(3, len(features))]
    figure = _figure(sum(heights) + 0.5)
    figure.suptitle(f"Outliers (magnitude of at least {report.threshold:g}{unit}) in {report.tokens} positions")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=[1, 0.02])
    axes = figure.add_subplot(grid[-1, 0])
    for number, kind in enumerate(kinds):
        bars = figure.add_subplot(grid[number, 0], sharex=axes)
        _draw_bars(bars, [i for i in report.inputs if i.kind == kind], blocks, f"C{number}")
    image = _draw_features(axes, report, hidden, features, blocks)
    if image is not None:
        figure.colorbar(image, cax=figure.add_subplot(grid[-1, 1]), label="positions, %")
    return _save(figure, file)


def plot_layer_errors(errors: Sequence[LayerError], path: str | os.PathLike[str]) -> Path:
    """Draws the errors of int8 layers over the depth of the model, those by weights beside those by activations.

    The effect on KL is a third panel if it was measured.

    Args:
        errors: What `layer_errors` returned.
        path: A .png or .svg file, in a folder that exists; overwritten.

    Returns:
        The path.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The suffix is another one, or there are no errors.
    """
    file = checked_path(path)
    if not errors:
        raise ValueError("there are no layer errors to draw")
    blocks = list(dict.fromkeys(e.block for e in errors))
    kinds = _most_frequent([e.kind for e in errors])
    with_kl = all(e.kl is not None for e in errors)

    figure = _figure(6.6 if with_kl else 4.0)
    grid = figure.add_gridspec(2 if with_kl else 1, 2)
    weights = figure.add_subplot(grid[0, 0])
    activations = figure.add_subplot(grid[0, 1], sharey=weights)
    panels: list[tuple[Axes, str, dict[int, float]]] = [
        (weights, "output error by int8 weights", {id(e): e.weights for e in errors}),
        (activations, "output error by int8 activations", {id(e): e.activations for e in errors}),
    ]
    if with_kl:
        effect = figure.add_subplot(grid[1, :])
        panels.append((effect, "effect of each layer alone on the predictions", {id(e): e.kl or 0.0 for e in errors}))
    for axes, title, values in panels:
        for kind in kinds:
            of_kind = [e for e in errors if e.kind == kind and values[id(e)] > 0]  # 0 has no place on a log scale
            depths = [blocks.index(e.block) for e in of_kind]
            axes.plot(depths, [values[id(e)] for e in of_kind], marker=".", linewidth=1.2, label=kind)
        axes.set_yscale("log")
        axes.locator_params(axis="x", integer=True)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("transformer layer")
        axes.grid(axis="y", which="both", color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    weights.set_ylabel("||y int8 - y|| / ||y||")
    if with_kl:
        effect.set_ylabel("KL, nats per token")
    handles, labels = weights.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _save(figure, file)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a plot, once its suffix and folder have been found in order.

    Args:
        path: As given.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The suffix is neither .png nor .svg.
    """
    file = Path(path)
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"a plot is written as {' or '.join(_SUFFIXES)}, got {str(file)!r}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"the folder {file.parent} does not exist; make it first")
    return file


def _figure(height: float) -> "Figure":
    """An empty figure of its own, without pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=120, facecolor="white", layout="constrained")


def _save(figure: "Figure", file: Path) -> Path:
    figure.savefig(file)
    return file


def _most_frequent(kinds: Sequence[str]) -> list[str]:
    """The kinds that most layers have, in the order of the model."""
    distinct = list(dict.fromkeys(kinds))
    chosen = sorted(distinct, key=kinds.count, reverse=True)[:_KINDS]
    return [kind for kind in distinct if kind in chosen]


def _draw_bars(axes: "Axes", inputs: Sequence[InputOutliers], blocks: Sequence[str], color: str) -> None:
    counts = [len(i.columns) for i in inputs]
    axes.bar([blocks.index(i.block) for i in inputs], counts, width=0.8, color=color)
    axes.set_title(f"columns with outliers in the input of {inputs[0].kind} (of {inputs[0].width})", **_TITLE)
    axes.set_ylim(0, max(1, *counts) * 1.15)
    axes.locator_params(axis="y", nbins=3, integer=True)
    axes.tick_params(labelsize=8, labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)


def _top_features(hidden: Sequence[InputOutliers]) -> list[int]:
    """The columns of the hidden states with outliers in most positions, of those that have them in 1 % of a layer's."""
    positions: Counter[int] = Counter()
    for i in hidden:
        for c in i.columns:
            positions[c.column] += round(c.positions * i.tokens)
    frequent = {c.column for i in hidden for c in i.columns if c.positions >= 0.01}
    return [column for column, _ in positions.most_common() if column in frequent][:_FEATURES]


def _draw_features(
    axes: "Axes",
    report: OutlierReport,
    hidden: Sequence[InputOutliers],
    features: Sequence[int],
    blocks: Sequence[str],
) -> "AxesImage | None":
    """Draws the share of positions with an outlier, features by layers; of a layer's inputs the one with most."""
    criterion = f"in ≥ {report.min_layers:.0%} of the layers and ≥ {report.min_positions:.0%} of all positions"
    axes.set_title(f"positions with an outlier in a feature of the hidden states; *: {criterion}", **_TITLE)
    axes.set_xlabel("transformer layer")
    axes.set_ylabel("feature")
    axes.tick_params(labelsize=8)
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    axes.locator_params(axis="x", integer=True)
    if not features:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none in 1 % of the positions of a layer", ha="center", transform=axes.transAxes)
        return None
    shares = [[0.0] * len(blocks) for _ in features]
    for i in hidden:
        at = blocks.index(i.block)
        for c in i.columns:
            if c.column in features:
                row = shares[features.index(c.column)]
                row[at] = max(row[at], 100 * c.positions)
    emerged = {f.column for f in report.features}
    axes.set_yticks(range(len(features)), [f"{'* ' if c in emerged else ''}{c}" for c in features])
    return axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
