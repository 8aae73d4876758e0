"""Numbers of the native kernels that Python needs, read from the one place where they stand: `csrc/limits.h`."""

import re
from pathlib import Path

_HEADER = Path(__file__).parent / "csrc" / "limits.h"
_NUMBERS = {
    name: int(value)
    for name, value in re.findall(r"^constexpr int(?:64_t)? (\w+) = (\d+);$", _HEADER.read_text(encoding="utf-8"), re.M)
}

DECODE_ROWS = _NUMBERS["DECODE_ROWS"]
PREFILL_ROWS = _NUMBERS["PREFILL_ROWS"]
ALIGNMENT = _NUMBERS["ALIGNMENT"]
DIGITS = _NUMBERS["DIGITS"]
FEW_OUTLIERS = _NUMBERS["FEW_OUTLIERS"]
MAX_FLOAT_ROWS = _NUMBERS["MAX_FLOAT_ROWS"]
FEW_QUERIES = _NUMBERS["FEW_QUERIES"]
KEY_PANEL = _NUMBERS["KEY_PANEL"]
