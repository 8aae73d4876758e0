"""The tables and figures of the documents are made from the CSV."""

from pathlib import Path

import pytest
import report
from harness import figures
from harness.results import RESULTS, Run, read


def _rows() -> list:
    run = Run("memory", start="2030-01-01T00:00:00+00:00")
    for repeat in (1, 2):
        run.add("llmint8", "weights", 1_000_000, "B", model="m", repeat=repeat)
        run.add("llmint8", "load", repeat, "s", model="m", repeat=repeat)
    accuracy = Run("accuracy", start="2030-01-01T00:00:00+00:00")
    accuracy.add("default", "KL", 0.0038, "", model="m")
    return run.rows + accuracy.rows


def test_tables_are_put_between_their_marks() -> None:
    text = "Before.\n<!-- table: memory m -->\nold\n<!-- end of table -->\nAfter.\n"
    made = report.fill(text, _rows())
    assert made.startswith("Before.\n<!-- table: memory m -->\n| | weights, MB |")
    assert "| **llmint8** | 1 | 1.50 ± 0.50 | - |" in made
    assert "2030-01-01" in made
    assert made.endswith("<!-- end of table -->\nAfter.\n")
    assert "old" not in made
    assert report.fill(made, _rows()) == made


def test_versions_are_those_of_most_systems_and_then_others() -> None:
    run = Run("compare")
    for system, versions in (("a", "torch 2, x 1"), ("b", "torch 2, x 1"), ("c", "torch 2, x 0, y 3")):
        run.add(system, "load", 1.0, "s", versions=versions)
    assert report.packages(run.rows) == "torch 2, x 1, x 0 (c), y 3"


def test_other_benchmarks_are_tables_of_their_systems_and_figures() -> None:
    made = report.fill("<!-- table: accuracy m -->\n<!-- end of table -->", _rows())
    assert "| | KL |\n|---|---:|\n| default | 0.0038 |" in made


def test_a_table_that_was_not_measured_stays() -> None:
    text = "<!-- table: memory other -->\nold\n<!-- end of table -->"
    assert report.fill(text, _rows()) == text


def test_a_table_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'no-such-table'"):
        report.fill("<!-- table: no-such-table m -->\n<!-- end of table -->", _rows())


def test_a_table_may_name_several_models() -> None:
    run = Run("compare", start="2030-01-01T00:00:00+00:00")
    for model, figure, setting, value in (
        ("large", "weights", "", 2e9),
        ("large", "prefill", "prompt=256", 571.4),
        ("large", "decode", "prompt=256 batch=1", 25.71),
        ("small", "KL", "tokens=9", 0.0045),
        ("other", "KL", "tokens=9", 0.9),
    ):
        run.add("llmint8", figure, value, "", model=model, setting=setting)
    made = report.fill("<!-- table: summary large small -->\n<!-- end of table -->", run.rows)
    assert made.splitlines()[1:7] == [
        "| | llmint8 | 16 bit | bitsandbytes |",
        "|---|---:|---:|---:|",
        "| memory of the weights, MB | 2000 | - | - |",
        "| prefill of 256 tokens, tokens/s | 571 | - | - |",
        "| decode, tokens/s | 25.7 | - | - |",
        "| KL to fp32 | 0.0045 | - | - |",
    ]
    assert "Memory and speed: large; KL: small;" in made


def test_the_documents_say_what_the_results_say() -> None:
    rows = read(RESULTS)
    names = []
    for document in report.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert all("|---|" in match[0] for match in report.PLACE.finditer(text))
        names += [match[2].split()[0] for match in report.PLACE.finditer(text)]
        assert report.fill(text, rows) == text, f"{document} is not up to date; run benchmarks/report.py"
    assert set(names) == set(report.TABLES)


def test_every_figure_is_drawn_for_light_and_dark(tmp_path: Path) -> None:
    drawn = figures.write(read(RESULTS), tmp_path)
    expected = {f"{name}-{theme}.svg" for name in figures.FIGURES for theme in figures.THEMES}
    assert {file.name for file in drawn} == expected
    again = figures.write(read(RESULTS), tmp_path / "again")
    assert [file.read_bytes() for file in drawn] == [file.read_bytes() for file in again]


def test_figures_hold_text_as_text(tmp_path: Path) -> None:
    for file in figures.write(read(RESULTS), tmp_path):
        assert "llmint8" in figures.texts(file)
        assert not any(
            "glyph" in line or "DejaVuSans-" in line for line in file.read_text(encoding="utf-8").splitlines()
        )


def test_the_figures_in_the_repository_say_what_the_results_say(tmp_path: Path) -> None:
    kept = [file for file in figures.write(read(RESULTS), tmp_path) if report.is_kept(file)]
    assert [file.name for file in kept] == ["speed-light.svg", "speed-dark.svg"]
    for file in kept:
        assert report.says_the_same(file), f"{file.name} is not up to date; run benchmarks/report.py"
