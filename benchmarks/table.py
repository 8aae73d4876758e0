"""Prints the rows of a benchmark as a table and appends them to a CSV."""

import csv
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import llmint8

Row = dict[str, Any]


def show(title: str, rows: Sequence[Row]) -> None:
    """Prints rows, whose keys are the columns.

    Args:
        title: What is measured.
        rows: At least one.
    """
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if os.isatty(1) else 140).print(table)


def append(path: Path, rows: Sequence[Row]) -> None:
    """Appends rows to a CSV, each with what is needed to compare it with others.

    Args:
        path: Made, with a header, if it does not exist.
        rows: At least one.
    """
    where = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "llmint8": llmint8.__version__,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*where, *rows[0]])
        if new:
            writer.writeheader()
        writer.writerows({**where, **row} for row in rows)
