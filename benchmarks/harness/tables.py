"""Tables of what is in the CSV, as rows of text."""

import statistics
from collections.abc import Iterable, Sequence

from harness.results import Cell, Row

Table = list[dict[str, str]]
OURS = "llmint8"


class Figures:
    """The values of one model in one run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        self._notes: dict[tuple[str, str, str], str] = {}
        self.systems: list[str] = []
        self.failures: dict[str, str] = {}
        for row in rows:
            if row.system not in self.systems:
                self.systems.append(row.system)
            if row.figure == "failed":
                self.failures[row.system] = row.note
            key = (row.system, row.figure, row.setting)
            if row.value is None:
                self._notes[key] = row.note
            else:
                self._values.setdefault(key, {})[row.repeat] = row.value

    def missing(self) -> str:
        """Returns sentences on figures that a system does not have, though it ran, and why; energy has its own."""
        absent = {(system, figure): note for (system, figure, _), note in self._notes.items() if note}
        return " ".join(
            f"{system} has no {figure}: {note}."
            for (system, figure), note in absent.items()
            if figure not in ("energy", "failed")
        )

    def settings(self, figure: str) -> list[str]:
        """Returns at which sizes a figure was measured, in their order."""
        return list(dict.fromkeys(setting for _, name, setting in self._values if name == figure))

    def values(self, system: str, figure: str, setting: str = "") -> dict[int, float]:
        """Returns the values of a figure by round; none if there are none."""
        return self._values.get((system, figure, setting), {})

    def median(self, system: str, figure: str, setting: str = "") -> float | None:
        """Returns the median over the rounds; None if there is no value."""
        values = self.values(system, figure, setting)
        return statistics.median(values.values()) if values else None

    def ratio(self, system: str, figure: str, setting: str = "", of: str = OURS) -> float | None:
        """Returns the median of the quotients of each round, `of` over the system."""
        above, below = self.values(of, figure, setting), self.values(system, figure, setting)
        quotients = [above[repeat] / below[repeat] for repeat in above.keys() & below.keys() if below[repeat]]
        return statistics.median(quotients) if quotients else None

    def cell(self, system: str, figure: str, setting: str = "", scale: float = 1, digits: int = 0) -> str:
        """Returns median and half the range of the rounds; "-" if there is no value."""
        values = [value * scale for value in self.values(system, figure, setting).values()]
        if not values:
            return "-"
        text = _number(statistics.median(values), digits)
        spread = (max(values) - min(values)) / 2
        return f"{text} ± {_number(spread, digits)}" if spread else text

    def compared(self, system: str, figure: str, setting: str = "", digits: int = 0) -> str:
        """Returns the cell, and how many times as much llmint8 had."""
        cell, ratio = self.cell(system, figure, setting, digits=digits), self.ratio(system, figure, setting)
        return cell if cell == "-" or ratio is None or system == OURS else f"{cell} ({ratio:.2f}×)"


def by_model(rows: Sequence[Row]) -> dict[str, Figures]:
    """Returns the figures of each model, in the order of the rows."""
    models = dict.fromkeys(row.model for row in rows)
    return {model: Figures(row for row in rows if row.model == model) for model in models}


def summary(large: Figures, small: Figures) -> Table:
    """What a reader wants to know first: memory, prefill, decode and KL of llmint8, 16 bit and bitsandbytes.

    Args:
        large: The model whose memory and speed are shown.
        small: The model whose accuracy is shown.
    """
    (prompt,) = large.settings("prefill") or [""]
    (decode, *_) = large.settings("decode") or [""]
    (text,) = small.settings("KL") or [""]
    lines = (
        ("memory of the weights, MB", large, "weights", "", 1e-6, 0),
        (f"prefill of {prompt.removeprefix('prompt=')} tokens, tokens/s", large, "prefill", prompt, 1, 0),
        ("decode, tokens/s", large, "decode", decode, 1, 1),
        ("KL to fp32", small, "KL", text, 1, 4),
    )
    systems = {"llmint8": OURS, "16 bit": "transformers bf16", "bitsandbytes": "bitsandbytes"}
    return [
        {"": title} | {name: figures.cell(system, figure, setting, scale, digits) for name, system in systems.items()}
        for title, figures, figure, setting, scale, digits in lines
    ]


def speed(figures: Figures) -> Table:
    """Speed and accuracy of every system on one model."""
    decodes, texts = figures.settings("decode"), figures.settings("KL")
    (prompt,) = figures.settings("prefill") or [""]
    table = []
    for system in figures.systems:
        row = {"": _bold(system), f"prefill of {prompt.removeprefix('prompt=')}, tokens/s": ""}
        row[list(row)[1]] = figures.compared(system, "prefill", prompt)
        for setting in decodes:
            batch = setting.rpartition("=")[2]
            name = "decode, tokens/s" if batch == "1" else f"decode × {batch}"
            row[name] = figures.compared(system, "decode", setting, digits=1 if batch == "1" else 0)
            if batch == "1":
                row["GB/s (of what a loop reads)"] = _share_of_limit(figures, system, setting)
                row["first token, s"] = figures.cell(system, "first token", setting, digits=2)
        for setting in texts:
            row["perplexity"] = figures.cell(system, "perplexity", setting, digits=3)
            row["KL to fp32"] = figures.cell(system, "KL", setting, digits=4)
        table.append(_failed(row, figures.failures.get(system)))
    return table


def energy(figures: Figures) -> str:
    """Returns a sentence on the energy of a token, or that nothing counted it."""
    parts = [
        f"{system} {figures.cell(system, 'energy', setting, digits=2)} J ({setting})"
        for setting in figures.settings("energy")
        for system in figures.systems
        if figures.values(system, "energy", setting)
    ]
    return (
        f"Energy of a token: {'; '.join(parts)}." if parts else "Energy of a token: not available, nothing counts it."
    )


def memory(figures: Figures) -> Table:
    """Loading and memory of every system on one model."""
    table = []
    for system in figures.systems:
        row = {"": _bold(system)}
        for title, figure in (
            ("checkpoint, MB", "checkpoint"),
            ("weights, MB", "weights"),
            ("peak while loading, MB", "peak anonymous"),
            ("after the first token, MB", "anonymous"),
            ("before loading, MB", "before loading"),
            ("with mapped files, MB", "resident"),
            ("peak allocated on the GPU, MB", "peak allocated on the GPU"),
            ("peak reserved on the GPU, MB", "peak reserved on the GPU"),
        ):
            if figures.settings(figure):
                value = figures.median(system, figure)
                row[title] = "-" if value is None else _number(value / 1e6, 0)
        row["loaded, s"] = figures.cell(system, "load", digits=2)
        row["and first token, s"] = figures.cell(system, "load and first token", digits=2)
        table.append(_failed(row, figures.failures.get(system)))
    return table


def wide(rows: Sequence[Row]) -> Table:
    """A table of rows that were added with `add_table`: a row a system, a column a figure (of a model)."""
    several = len({row.model for row in rows}) > 1
    cells = {(row.system, f"{row.model}: {row.figure}" if several else row.figure): row for row in rows}
    columns = list(dict.fromkeys(column for _, column in cells))
    digits = {column: max(_digits(row) for (_, other), row in cells.items() if other == column) for column in columns}
    table = []
    for system in dict.fromkeys(system for system, _ in cells):
        line = {"": system}
        for column in columns:
            row = cells.get((system, column))
            value = None if row is None else row.value
            line[column] = "" if row is None or value is None else str(Cell(value, digits[column], row.unit))
        table.append(line)
    return table


def growth(rows: Sequence[Row]) -> Table:
    """A row a model and size: tokens/s of each system, in brackets how many times as fast llmint8 was."""
    shown = [row for row in rows if row.figure in ("prefill", "decode")]
    systems = list(dict.fromkeys(row.system for row in shown))
    table = []
    for model, figures in by_model(shown).items():
        for figure in ("decode", "prefill"):
            digits = 1 if figure == "decode" else 0
            for setting in sorted(figures.settings(figure), key=lambda setting: int(setting.rpartition("=")[2])):
                line = {"": f"{figure}, {model}, {setting}"}
                line |= {system: figures.compared(system, figure, setting, digits=digits) for system in systems}
                table.append(line)
    return table


def generation_gpu(figures: Figures) -> Table:
    """A row a system: its weights, and tokens/s at each size, in brackets as a multiple of the first system's."""
    first = figures.systems[0]
    table = []
    for system in figures.systems:
        weights = figures.median(system, "weights")
        line = {"": system, "weights, GB": "-" if weights is None else f"{weights / 1e9:.2f}"}
        for figure in ("prefill", "decode", "decode, CUDA graph"):
            for setting in figures.settings(figure):
                value = figures.median(system, figure, setting)
                other = figures.median(first, figure, setting)
                factor = "" if system == first or not value or not other else f" ({value / other:.2f}×)"
                line[f"{figure}, {setting.split()[-1]}"] = "-" if value is None else f"{value:.0f}{factor}"
        table.append(line)
    return table


def serving(figures: Figures) -> Table:
    """One row: throughput of many clients beside one at a time, and what happened to their answers."""
    (system,), (setting,) = figures.systems, figures.settings("together")

    def of(figure: str, scale: float = 1, digits: int = 0) -> str:
        return figures.cell(system, figure, setting, scale, digits)

    clients = setting.split()[0].removeprefix("clients=")
    return [
        {
            "": f"{clients} clients",
            "one at a time, tokens/s": of("one at a time"),
            "together, tokens/s": of("together"),
            "times": f"{of('ratio', digits=2)}×",
            "answers": of("requests together"),
            "lost": of("lost"),
            "mixed up": of("mixed up"),
            "memory, MB": of("resident memory, most", 1e-6),
            "its growth": f"{of('growth of memory', 100, 1)}%",
        }
    ]


def int8_linear_gpu(rows: Sequence[Row]) -> Table:
    """A row a size: microseconds of each system, in brackets how many times as fast as 16 bit."""
    systems = list(dict.fromkeys(row.system for row in rows if row.figure == "layer"))
    table = []
    for model, setting in dict.fromkeys((row.model, row.setting) for row in rows if row.figure == "layer"):
        figures = Figures(row for row in rows if (row.model, row.setting) == (model, setting))
        half = figures.median("16 bit", "layer", setting)
        line = {"N x K": model, "rows": setting.split()[0].removeprefix("rows=")}
        for system in systems:
            value = figures.median(system, "layer", setting)
            factor = "" if system == "16 bit" or not value or not half else f" ({half / value:.2f}×)"
            line[system] = "-" if value is None else f"{value * 1e6:.0f}{factor}"
        table.append(line)
    return sorted(table, key=lambda line: (line["N x K"], int(line["rows"])))


def markdown(table: Table) -> str:
    """Returns a table in Markdown, the first column to the left."""
    columns = list(table[0])
    lines = [_line(columns), f"|---|{'---:|' * (len(columns) - 1)}", *(_line(list(row.values())) for row in table)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _share_of_limit(figures: Figures, system: str, setting: str) -> str:
    cell = figures.cell(system, "weights read", setting, digits=1)
    reached, limits = figures.values(system, "weights read", setting), figures.values(system, "read loop")
    shares = [reached[repeat] / limits[repeat] for repeat in reached.keys() & limits.keys()]
    return f"{cell} ({statistics.median(shares):.0%})" if shares else cell


def _digits(row: Row) -> int:
    """Those after the point of a value that was rounded before it was stored."""
    decimals = len(f"{row.value or 0:.6f}".rstrip("0").partition(".")[2])
    return max(0, decimals - 2) if row.unit == "%" else decimals


def _failed(row: dict[str, str], reason: str | None) -> dict[str, str]:
    if reason is None:
        return row
    first, second, *others = row
    return {first: row[first], second: f"could not run: {reason}", **dict.fromkeys(others, "")}


def _bold(system: str) -> str:
    return f"**{system}**" if system == OURS else system


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
