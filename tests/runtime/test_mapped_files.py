"""Pages of a checkpoint are given back once they are read, and what was written to them is not lost."""

import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llmint8
from llmint8.runtime import mapped_files

if not sys.platform.startswith("linux"):
    pytest.skip("only Linux tells what is mapped", allow_module_level=True)

BYTES = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file.bin"
    path.write_bytes(bytes(range(256)) * (BYTES // 256))
    return path


def resident(path: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_clean_pages_are_given_back_and_read_again(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        expected = mapped[:]
        assert resident(file) == BYTES
        spans = mapped_files.mappings([file])
        assert sum(end - start for start, end in spans) == BYTES
        mapped_files.unload(spans)
        assert resident(file) == 0
        assert mapped[:] == expected


def test_changed_mappings_are_left_alone(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[5000] = 77
        assert not mapped_files.mappings([file])


def test_other_files_and_systems(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ):
        assert not mapped_files.mappings([])
        assert not mapped_files.mappings([file.with_name("other")])
        assert mapped_files.mappings([str(file)])
        monkeypatch.setattr(sys, "platform", "darwin")
        assert not mapped_files.mappings([file])


def test_a_loaded_model_keeps_no_page_of_its_16_bit_weights(
    make_checkpoint: Callable[..., Path], run_model: Callable[..., torch.Tensor]
) -> None:
    folder = make_checkpoint("llama", torch.bfloat16)
    model = llmint8.from_pretrained(folder)
    assert resident(folder / "model.safetensors") == 0
    expected = run_model(model)
    assert expected.isfinite().all()
    assert torch.equal(run_model(llmint8.from_pretrained(folder)), expected)
