"""Joules from the counters of RAPL."""

from pathlib import Path

import pytest
from harness.energy import Meter


def _counter(folder: Path, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    package = folder / name
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text(f"{most}\n")
    return package


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        _counter(tmp_path, name, 1_000_000)
    meter = Meter(powercap=tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        _counter(tmp_path, name, 3_500_000)
    assert meter.joules() == pytest.approx(5.0)


def test_a_counter_that_starts_again_has_not_run_backwards(tmp_path: Path) -> None:
    _counter(tmp_path, "intel-rapl:0", 999_000_000)
    meter = Meter(powercap=tmp_path)
    _counter(tmp_path, "intel-rapl:0", 1_000_000)
    assert meter.joules() == pytest.approx(2.0)


def test_without_a_counter_there_is_no_energy(tmp_path: Path) -> None:
    assert Meter(powercap=tmp_path).joules() is None
    package = _counter(tmp_path, "intel-rapl:0", 1)
    (package / "energy_uj").unlink()
    assert Meter(powercap=tmp_path).joules() is None


def test_a_counter_that_went_away_is_not_zero(tmp_path: Path) -> None:
    package = _counter(tmp_path, "intel-rapl:0", 1)
    meter = Meter(powercap=tmp_path)
    (package / "energy_uj").unlink()
    assert meter.joules() is None
