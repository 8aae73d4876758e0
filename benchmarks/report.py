"""Writes the tables of the documents and the figures from the CSV."""

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
DOCUMENTS = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")), HERE / "README.md")
DRAWN = HERE / "figures"
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


def summary(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The four rows of the main README: memory and speed of the first model, accuracy of the last one."""
    large, small = (tables.Figures(row for row in rows if row.model == model) for model in (models[0], models[-1]))
    measured = f"Memory and speed: {models[0]}; KL: {models[-1]}; {machine(rows)}"
    return f"{tables.markdown(tables.summary(large, small))}\n\n{measured}"


def speed(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The main table of one model."""
    model_figures = tables.Figures(rows)
    notes = f"{machine(rows)} {tables.energy(model_figures)} {packages(rows)}. {model_figures.missing()}".rstrip()
    return f"{tables.markdown(tables.speed(model_figures))}\n\n{notes}"


def memory(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The memory table of one model."""
    return f"{tables.markdown(tables.memory(tables.Figures(rows)))}\n\n{machine(rows)}"


def wide(rows: Sequence[Row], models: Sequence[str]) -> str:
    """A table of a benchmark of accuracy: a row a scheme, a column a figure."""
    return f"{tables.markdown(tables.wide(rows))}\n\n{machine(rows)}"


def generation_gpu(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Whole models on a GPU, in tokens/s."""
    return f"{tables.markdown(tables.generation_gpu(tables.Figures(rows)))}\n\n{machine(rows)} {packages(rows)}."


def int8_linear_gpu(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Layers on a GPU, in microseconds."""
    return f"{tables.markdown(tables.int8_linear_gpu(rows))}\n\n{machine(rows)} {packages(rows)}."


def serving(rows: Sequence[Row], models: Sequence[str]) -> str:
    """A server with many clients."""
    first = rows[0]
    return f"{tables.markdown(tables.serving(tables.Figures(rows)))}\n\n{first.model}, {first.setting}; {machine(rows)}"


def growth(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Speed against the size of the model, the prompt and the batch, in tokens/s."""
    return f"{tables.markdown(tables.growth(rows))}\n\n{machine(rows)}"


# Name of a mark -> benchmark, and how its table is made from its rows and the models that are named beside it.
TABLES: dict[str, tuple[str, Callable[[Sequence[Row], Sequence[str]], str]]] = {
    "summary": ("compare", summary),
    "speed": ("compare", speed),
    "memory": ("memory", memory),
    "growth": ("growth", growth),
    "serving": ("serving", serving),
    "generation_gpu": ("generation_gpu", generation_gpu),
    "int8_linear_gpu": ("int8_linear_gpu", int8_linear_gpu),
    **{name: (name, wide) for name in ("accuracy", "paper_table1", "encoder", "random_models", "static_columns")},
    "static_columns_found_again": ("static_columns_found_again", wide),
}


def fill(text: str, rows: Sequence[Row]) -> str:
    """Returns a document with every table between its marks made anew: `<!-- table: NAME MODEL... -->`.

    Raises:
        ValueError: There is no table of that name.
    """

    def table(match: re.Match[str]) -> str:
        name, *models = match[2].split()
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        benchmark, make = TABLES[name]
        chosen = latest(row for row in rows if row.benchmark == benchmark and (not models or row.model in models))
        if not chosen:  # not measured yet: what is there stays
            return match[0]
        return f"{match[1]}{make(chosen, models)}\n{match[3]}"

    return PLACE.sub(table, text)


def is_kept(file: Path) -> bool:
    """Whether a figure is in the repository; the others are drawn when they are wanted."""
    return file.name.startswith(figures.KEPT)


def says_the_same(file: Path) -> bool:
    """Whether a figure has the texts of the one in the repository; curves differ from one matplotlib to the next.

    Args:
        file: File of a figure that was just drawn.
    """
    kept = DRAWN / file.name
    return kept.exists() and figures.texts(kept) == figures.texts(file)


def main(
    results: Annotated[Path, typer.Option(help="The CSV.")] = RESULTS,
    check: Annotated[bool, typer.Option(help="Change nothing; fail if something is not up to date.")] = False,
) -> None:
    """Makes the tables of the documents and the figures anew."""
    rows = read(results)
    stale = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if (made := fill(text, rows)) != text:
            stale.append(document)
            if not check:
                document.write_text(made, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.write(rows, Path(folder) if check else DRAWN)
        if check:
            stale += [DRAWN / file.name for file in drawn if is_kept(file) and not says_the_same(file)]
    if check and stale:
        sys.exit(f"not what {results.name} says: {', '.join(str(file) for file in stale)}; run benchmarks/report.py")


if __name__ == "__main__":
    typer.run(main)
