"""Writes the tables and figures of the README files from the CSV."""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from harness import figures, tables
from harness.results import RESULTS, Row, latest, read

HERE = Path(__file__).parent
DOCUMENTS = (HERE.parent / "README.md", HERE / "README.md")
PLACE = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def machine(rows: Sequence[Row]) -> str:
    """Returns a line that says what some rows of one run were measured on."""
    first, repeats = rows[0], max(row.repeat for row in rows)
    rounds = f", {repeats} rounds: median ± half the range" if repeats > 1 else ""
    return f"{first.device}, {first.threads} threads; {first.run[:10]}, commit {first.commit}{rounds}."


def packages(rows: Sequence[Row]) -> str:
    """Returns the versions in some rows: what most systems have, then what is of few."""
    of_systems: dict[str, list[str]] = {}
    for row in rows:
        if row.versions:
            of_systems[row.system] = row.versions.split(", ")
    counts = Counter(package for found in of_systems.values() for package in found)
    common = sorted(package for package, count in counts.items() if 2 * count > len(of_systems))
    names = {package.partition(" ")[0] for package in common}
    others = {
        f"{package} ({system})" if package.partition(" ")[0] in names else package
        for system, found in of_systems.items()
        for package in found
        if package not in common
    }
    return ", ".join([*common, *sorted(others)])


def speed(rows: Sequence[Row], model: str) -> str:
    """The main table of one model."""
    model_figures = tables.Figures(rows)
    notes = f"{machine(rows)} {tables.energy(model_figures)} {packages(rows)}. {model_figures.missing()}".rstrip()
    return f"{tables.markdown(tables.speed(model_figures))}\n\n{notes}"


def memory(rows: Sequence[Row], model: str) -> str:
    """The memory table of one model."""
    return f"{tables.markdown(tables.memory(tables.Figures(rows)))}\n\n{machine(rows)}"


def wide(rows: Sequence[Row], model: str) -> str:
    """A table of a benchmark of accuracy: a row a scheme, a column a figure."""
    return f"{tables.markdown(tables.wide(rows))}\n\n{machine(rows)}"


def generation_gpu(rows: Sequence[Row], model: str) -> str:
    """Whole models on a GPU, in tokens/s."""
    return f"{tables.markdown(tables.generation_gpu(tables.Figures(rows)))}\n\n{machine(rows)} {packages(rows)}."


def int8_linear_gpu(rows: Sequence[Row], model: str) -> str:
    """Layers on a GPU, in microseconds."""
    return f"{tables.markdown(tables.int8_linear_gpu(rows))}\n\n{machine(rows)} {packages(rows)}."


def serving(rows: Sequence[Row], model: str) -> str:
    """A server with many clients."""
    first = rows[0]
    return f"{tables.markdown(tables.serving(tables.Figures(rows)))}\n\n{first.model}, {first.setting}; {machine(rows)}"


def modes(rows: Sequence[Row], model: str) -> str:
    """The table of accuracy, without what led to the default."""
    return wide([row for row in rows if row.system in MODES], model)


MODES = (
    "fp32",
    "int8 x int8, no outliers",
    "bitsandbytes, threshold 6.0",
    "threshold 6.0 (paper)",
    "threshold 6.0, asymmetric",
    "budget 32, relative, asymmetric",
    "budget 1/8, 5 x rms, asymmetric (default)",
    "static, calibrated as the default",
    "weights only (decode regime)",
)
# Name of a mark -> benchmark, and how its table is made from its rows and the model that is named beside it.
TABLES: dict[str, tuple[str, Callable[[Sequence[Row], str], str]]] = {
    "speed": ("compare", speed),
    "memory": ("memory", memory),
    "modes": ("accuracy", modes),
    "serving": ("serving", serving),
    "generation_gpu": ("generation_gpu", generation_gpu),
    "int8_linear_gpu": ("int8_linear_gpu", int8_linear_gpu),
    **{name: (name, wide) for name in ("accuracy", "paper_table1", "encoder", "random_models", "static_columns")},
    "static_columns_found_again": ("static_columns_found_again", wide),
}


def fill(text: str, rows: Sequence[Row]) -> str:
    """Returns a document with every table between its marks made anew: `<!-- table: NAME MODEL -->`.

    Raises:
        ValueError: There is no table of that name.
    """

    def table(match: re.Match[str]) -> str:
        name, _, model = match[2].strip().partition(" ")
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        benchmark, make = TABLES[name]
        chosen = latest(row for row in rows if row.benchmark == benchmark and model in ("", row.model))
        if not chosen:  # not measured yet: what is there stays
            return match[0]
        return f"{match[1]}{make(chosen, model)}\n{match[3]}"

    return PLACE.sub(table, text)


def main(
    results: Annotated[Path, typer.Option(help="The CSV.")] = RESULTS,
    check: Annotated[bool, typer.Option(help="Change nothing; fail if something is not up to date.")] = False,
) -> None:
    """Makes the tables of the README files and the figures anew."""
    rows = read(results)
    stale = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if (made := fill(text, rows)) != text:
            stale.append(document)
            if not check:
                document.write_text(made, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.write(rows, Path(folder) if check else HERE / "figures")
        if check:  # how text is set differs from one matplotlib to the next, so only that there is one
            stale += [HERE / "figures" / file.name for file in drawn if not (HERE / "figures" / file.name).exists()]
    if check and stale:
        sys.exit(f"not what {results.name} says: {', '.join(str(file) for file in stale)}; run benchmarks/report.py")


if __name__ == "__main__":
    typer.run(main)
