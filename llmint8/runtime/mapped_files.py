"""Gives back the memory of a 16-bit checkpoint that was read through a mapping, once its weights are int8.

The tensors that stay in 16 bit keep the whole file mapped, and with it the pages that were read for the others. Those
are clean and would go when memory is short, but until then the process looks as large as both models together.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(.+)")
_DONTNEED = 4  # madvise(2)


def mappings(files: Iterable[str | os.PathLike]) -> set[tuple[int, int]]:
    """Returns the address ranges that some files are mapped to, where nothing was written to them (Linux).

    Args:
        files: Any; without one, or on another system, there is no range.
    """
    paths = {os.path.realpath(file) for file in files}
    if not paths or not sys.platform.startswith("linux"):
        return set()
    try:
        return {span for path, span, dirty in _read() if path in paths and not dirty}
    except OSError:  # a system may hide it
        return set()


def unload(spans: Iterable[tuple[int, int]]) -> None:
    """Unloads the pages of clean mappings; they are read again from the file when they are needed.

    Args:
        spans: Address ranges, as `mappings` returns them. Nobody may write to them meanwhile.
    """
    for start, end in spans:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _read() -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Path, address range and whether it has changed pages, of each mapped file."""
    path, span = "", (0, 0)
    changed: dict[tuple[str, tuple[int, int]], bool] = {}
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _MAPPING.fullmatch(line):
            path, span = match[3], (int(match[1], 16), int(match[2], 16))
            changed[path, span] = False
        elif line.startswith(("Anonymous:", "Swap:")) and (path, span) in changed:  # no longer the file's
            changed[path, span] |= line.split()[1] != "0"
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path, span = "", (0, 0)
    return ((path, span, dirty) for (path, span), dirty in changed.items())
