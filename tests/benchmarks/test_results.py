"""The CSV of the benchmarks: what is written is read again."""

from pathlib import Path

import pytest
from harness.results import Cell, Run, latest, read


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run("compare")
    run.add(
        "llmint8", "prefill", 309.25, "tokens/s", model="m", setting="prompt=256", repeat=2, versions="torch 2.13.0"
    )
    run.add("vLLM, bf16", "failed", None, "", model="m", note='cannot be installed: "no", said pip')
    run.save(tmp_path / "folder" / "results.csv")
    assert read(tmp_path / "folder" / "results.csv") == run.rows
    first = run.rows[0]
    assert (first.benchmark, first.threads, first.repeat, first.value) == ("compare", run.threads, 2, 309.25)
    assert first.commit
    assert "cores" in first.device


def test_runs_are_appended_and_the_last_one_is_found(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    for second, value in (("00", 1.0), ("01", 2.0)):
        run = Run("memory", start=f"2030-01-01T00:00:{second}+00:00")
        run.add("llmint8", "load", value, "s")
        run.save(file)
    other = Run("compare", start="2031-01-01T00:00:00+00:00")
    other.add("llmint8", "load", 3.0, "s")
    other.save(file)
    assert [row.value for row in read(file)] == [1.0, 2.0, 3.0]
    assert [row.value for row in latest(read(file, "memory"))] == [2.0]
    assert latest([]) == []


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("memory")
    run.add("llmint8", "load", 1.0, "s")
    run.save(None)
    assert list(tmp_path.iterdir()) == []


def test_a_table_becomes_a_row_for_each_number() -> None:
    run = Run("accuracy")
    run.add_table([{"scheme": "a", "paper": "", "KL": Cell(0.0037512, 4), "top-1": Cell(0.96649, 1, "%")}], model="m")
    assert [(row.system, row.figure, row.value, row.unit) for row in run.rows] == [
        ("a", "KL", 0.0038, ""),
        ("a", "top-1", 0.966, "%"),
    ]
    assert [str(Cell(0.0037512, 4)), str(Cell(0.96649, 1, "%"))] == ["0.0038", "96.6%"]


def test_a_line_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    run = Run("memory")
    run.add("llmint8", "load", 1.0, "s")
    run.save(tmp_path / "results.csv")
    with (tmp_path / "results.csv").open("a") as stream:
        stream.write("something else\n")
    with pytest.raises(ValueError, match="line 3 is no row"):
        read(tmp_path / "results.csv")
