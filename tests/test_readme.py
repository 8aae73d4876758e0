"""The Python of the README runs, block after block."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_readme(tmp_path: Path, capsys: pytest.CaptureFixture, smollm2: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    namespace: dict = {}
    for block in blocks:
        exec(block.replace("/tmp/", f"{tmp_path.as_posix()}/"), namespace)
    assert "Paris" in capsys.readouterr().out
