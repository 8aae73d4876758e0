"""One CSV for all benchmarks: a row is one figure of one system, measured once."""

import csv
import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from harness import host

RESULTS = Path(__file__).parent.parent / "results.csv"


@dataclass(frozen=True)
class Cell:
    """A number in a table: its value, the digits it is shown with, and its unit, "%" or none."""

    value: float
    digits: int
    unit: str = ""

    def rounded(self) -> float:
        """Returns the value with the digits that are shown."""
        return round(self.value, self.digits + (2 if self.unit == "%" else 0))

    def __str__(self) -> str:
        scale = 100 if self.unit == "%" else 1
        return f"{self.value * scale:.{self.digits}f}{self.unit}"


Cells = dict[str, str | Cell]


@dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        run: Time of the start of the run, ISO 8601 in UTC; with `benchmark`, what belongs together.
        benchmark: The script.
        commit: Commit of this repository.
        device: Name of the processor or GPU.
        threads: Threads of the processor.
        versions: Versions of the packages of the system.
        model: What runs.
        system: Who runs it.
        figure: What is measured.
        setting: At which size, as `prompt=256 batch=8`.
        repeat: The round, from 1; 0 if there is only one.
        value: As a number, or empty if there is none.
        unit: Unit of the value.
        note: Why there is no value.
    """

    run: str
    benchmark: str
    commit: str
    device: str
    threads: int
    versions: str
    model: str
    system: str
    figure: str
    setting: str
    repeat: int
    value: float | None
    unit: str
    note: str = ""


@dataclass
class Run:
    """The figures of one run of a benchmark, kept until it is done."""

    benchmark: str
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    rows: list[Row] = field(default_factory=list)
    start: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        self._commit, self._device = host.commit(), host.device_name(self.device)

    def add(
        self,
        system: str,
        figure: str,
        value: float | None,
        unit: str,
        *,
        model: str = "",
        setting: str = "",
        repeat: int = 0,
        versions: str | None = None,
        note: str = "",
    ) -> None:
        """Adds a figure; the arguments are those of `Row`."""
        versions = host.versions("llmint8", "torch", "transformers") if versions is None else versions
        fixed = (self.start, self.benchmark, self._commit, self._device, self.threads, versions)
        self.rows.append(Row(*fixed, model, system, figure, setting, repeat, value, unit, note))

    def add_table(self, rows: Iterable[Cells], *, model: str = "", setting: str = "") -> None:
        """Adds the cells of a table: its rows are systems, named in the first column, and its columns figures.

        Args:
            rows: Strings in other columns are no figures.
            model: What runs.
            setting: At which size.
        """
        for row in rows:
            system, *_ = row.values()
            for column, cell in row.items():
                if isinstance(cell, Cell):
                    self.add(str(system), column, cell.rounded(), cell.unit, model=model, setting=setting)

    def save(self, path: Path | None) -> None:
        """Appends the rows to a CSV, which gets a header if it is new; does nothing without a path."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [column.name for column in fields(Row)], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(_as_text(row) for row in self.rows)


def read(path: Path, benchmark: str | None = None) -> list[Row]:
    """Returns the rows of a CSV, those of one benchmark if it is named.

    Raises:
        ValueError: A row is not one of ours.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        found = [_from_text(number, row) for number, row in enumerate(csv.DictReader(stream), start=2)]
    return [row for row in found if benchmark in (None, row.benchmark)]


def latest(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of the last run among some."""
    rows = list(rows)
    last = max((row.run for row in rows), default="")
    return [row for row in rows if row.run == last]


def _as_text(row: Row) -> dict[str, object]:
    values = asdict(row)
    if row.value is not None:
        values["value"] = f"{row.value:.6g}" if isinstance(row.value, float) else row.value
    return values


def _from_text(number: int, row: dict[str, str]) -> Row:
    try:
        numbers = {
            "threads": int(row["threads"]),
            "repeat": int(row["repeat"]),
            "value": float(row["value"]) if row["value"] else None,
        }
        return Row(**{**row, **numbers})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"line {number} is no row of a benchmark: {row}") from error


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints a table.

    Args:
        title: What is measured.
        rows: At least one; their keys are the columns.
    """
    table = Table(title=title)
    for index, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if os.isatty(1) else 140).print(table)
