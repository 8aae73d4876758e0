import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from llmint8.kernels.triton import audit, tiles
from llmint8.kernels.triton.compile_only import SHARED_MEMORY, compile_only
from llmint8.kernels.triton.weight_only_linear import weight_only_linear


def test_every_architecture_has_a_tile_for_every_number_of_rows() -> None:
    for architecture in SHARED_MEMORY:
        tables = tiles.built_in(architecture)
        for table in (tables.mixed_linear, tables.weight_only_linear, tables.one_row):
            if table is not None:
                assert [most for most, _ in table] == sorted(most for most, _ in table)
                for m in (1, 16, 17, 64, 65, 4096, 1 << 24):
                    assert tiles.find(table, m).num_warps in (2, 4, 8)


def test_tables_come_back_from_json() -> None:
    for architecture in (75, 89, 103):
        tables = tiles.built_in(architecture)
        assert tiles.built_in(80).updated_from_json(tables.to_json()) == tables
        older = {name: field for name, field in json.loads(tables.to_json()).items() if name != "int_mm"}
        assert tables.updated_from_json(json.dumps(older)) == tables  # what it does not tell stays
    tile = {"block_m": 16, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 2, "unroll": 1}
    odd = json.dumps({"mixed_linear": [[tiles.ANY, {**tile, "block_k": 48}]]})
    short = json.dumps({"mixed_linear": [[16, tile]]})
    empty = ('{"mixed_linear": []}', '{"mixed_linear": "abc"}', '{"mixed_linear": null, "decode_rows": "x"}')
    for text in (
        "",
        "[]",
        '{"mixed_linear": [[1, {}]]}',
        '{"mixed_linear": null, "other": 1}',
        odd,
        short,
        *empty,
    ):
        with pytest.raises(ValueError, match="not a table of tiles"):
            tiles.built_in(80).updated_from_json(text)


def test_what_was_tuned_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMINT8_CACHE", str(tmp_path))
    monkeypatch.setattr(tiles, "_architecture", lambda index: 80)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA RTX/9 Ti")
    monkeypatch.setattr(tiles, "_tables", tiles._tables.__wrapped__)
    gpu = torch.device("cuda", 0)
    assert tiles.tables(gpu) == tiles.built_in(80)
    tuned = tiles.Tables(((tiles.ANY, tiles.Tile(64, 64, 64, 4, 2)),))
    path = tiles.tuned_path("NVIDIA RTX/9 Ti")
    assert path == tmp_path / "tiles" / "NVIDIA-RTX-9-Ti.json"
    path.parent.mkdir()
    path.write_text(tuned.to_json())
    assert tiles.tables(gpu) == tuned
    path.write_text("{")
    with pytest.warns(UserWarning, match="is not used"):
        assert tiles.tables(gpu) == tiles.built_in(80)


def test_the_audit_sees_what_is_wrong() -> None:
    x, weight = torch.empty(8, 256, dtype=torch.float16), torch.empty(64, 256, dtype=torch.int8)
    with compile_only(80) as launches:
        weight_only_linear(x, weight, torch.empty(64, 1), None)
        weight_only_linear(x, weight[:, :-1], torch.empty(64, 1), None)
    good, bad = (audit.read(80, launch.binary, "case") for launch in launches)
    assert good.fault == ""
    assert good.registers > 16
    assert "float" in good.mma
    assert bad.fault == "copies of less than 16 bytes"
    rows = audit.Row(**{**vars(good), "kernel": "mixed_linear", "spills": 3, "shared": good.limit + 1})
    fault = audit._fault(rows, int8=0, copies=4, wide=4)
    assert fault == "3 spills, too much shared memory, no int8 tensor cores"


def test_without_a_working_triton_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    from llmint8.kernels import triton

    monkeypatch.setattr(driver, "_active", None)  # there is no GPU, so there is no driver either
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    why_not_on = triton.why_not_on.__wrapped__
    with pytest.warns(UserWarning, match="Triton does not work here"):
        assert "driver" in why_not_on(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert why_not_on(0) == "the kernels need compute capability 7.5, this GPU has 7.0"
