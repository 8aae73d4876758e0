"""Links of the documents lead somewhere: to a file of the repository, and to a heading in it."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "benchmarks/texts", "kernels")),
    ROOT / "llmint8/integrations/transformers/fused/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#{1,6} (.+)$", without_code(document.read_text(encoding="utf-8")), flags=re.MULTILINE)
    names, seen = set(), Counter[str]()
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def links(document: Path) -> list[str]:
    text = without_code(document.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    return [link for link in found if not re.match("https?:", link)]


def broken(document: Path) -> list[str]:
    wrong = []
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.is_relative_to(ROOT) or not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links(document: Path) -> None:
    assert broken(document) == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set((ROOT / "docs").glob("*.md")) <= linked


def test_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# A `b` c, d\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n", encoding="utf-8"
    )
    assert anchors(tmp_path / "other.md") == {"a-b-c-d", "twice", "twice-1"}
    text = '[a](other.md#twice) [b](https://x.y/z) <img src="c.svg">\n```\n[no](link)\n```\n'
    (tmp_path / "document.md").write_text(text, encoding="utf-8")
    assert links(tmp_path / "document.md") == ["other.md#twice", "c.svg"]
