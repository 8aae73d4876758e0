"""Free memory of the C heap goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

from llmint8.runtime import heap

FREED = """
import ctypes
from pathlib import Path
from llmint8.runtime import heap

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = [libc.malloc(100_000) for _ in range(1000)]  # too small to be mapped by themselves
for block in blocks:
    ctypes.memset(block, 1, 100_000)
top = libc.malloc(100_000)  # of no size that is free elsewhere: keeps the heap from shrinking by itself
for block in blocks:
    libc.free(ctypes.c_void_p(block))
before = anonymous()
heap.trim()
print(before - anonymous())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="the C library has no malloc_trim",
)
def test_free_memory_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 80e6


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    heap.trim()
