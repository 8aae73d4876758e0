"""What a reader may copy from the README and `docs/` works: Python runs; commands, targets and extras exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from llmint8.cli.main import make_app
from llmint8.integrations.patches import PATCHES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shell_lines() -> list[list[str]]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages_with_python() -> list:
    """The pages with examples in Python; those beside the README are marked slow."""
    marks = {page: () if page.name == "README.md" else (pytest.mark.slow,) for page in PAGES if blocks(page, "python")}
    return [pytest.param(page, marks=marks[page], id=page.name) for page in marks]


@pytest.mark.parametrize("page", pages_with_python())
def test_python(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture, smollm2: Path) -> None:
    """Block after block, each with what those before it on the page have made."""
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(block.replace("/tmp/", f"{tmp_path.as_posix()}/"), namespace)
    if page.name == "README.md":
        assert "Paris" in capsys.readouterr().out


def test_the_first_example_runs_after_the_lines_that_install_it() -> None:
    """It takes the default model, whose packages the Makefile installs as the README says."""
    install, example = (blocks(PAGES[0], language)[0] for language in ("bash", "python"))
    assert "default_model()" in example
    commands = [shlex.split(line, comments=True) for line in install.splitlines()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [words[:2] for words in commands] == [["pip", "install"]] * 2
    assert commands[0][2:] == [".[demo]"]
    assert commands[1][2:3] == ["--no-deps"]
    assert f"--no-deps {commands[1][3]}\n" in makefile


def test_commands_and_their_options_exist() -> None:
    commands = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]
    called = [words[1:] for words in shell_lines() if words[0] == "llmint8"]
    assert {name for name, *_ in called} == set(commands)
    for name, *words in called:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"llmint8 {name} {' '.join(words)}"


def test_make_targets_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "benchmarks/README.md"])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, flags=re.MULTILINE)
    assert {"demo", "test", "report"} <= set(named) <= set(targets)


def test_extras_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"demo", "serve", "ui", "analysis"} == set(re.findall(r"\.\[([a-z]+)\]", text))
    assert {"demo", "serve", "ui", "analysis"} <= set(project["optional-dependencies"])


def test_required_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = {re.split("[>=]", each)[0]: re.search(r">=([\d.]+)", each)[1] for each in project["dependencies"]}  # type: ignore[index]
    python = project["requires-python"].removeprefix(">=")
    expected = f"Python {python}+, torch {least['torch']}+, transformers {least['transformers']}+."
    assert expected in PAGES[0].read_text(encoding="utf-8")


def test_the_layout_of_the_package_is_the_one_described() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("| in `llmint8/` |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    described = {name for row in rows for name in re.findall("`([^`]+)`", row)}
    package = ROOT / "llmint8"
    assert {name for name in described if not (package / name).exists()} == set()
    folders = {f"{folder.name}/" for folder in package.iterdir() if (folder / "__init__.py").exists()}
    assert {folder for folder in folders if not any(name.startswith(folder) for name in described)} == set()


def test_every_patch_is_described() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("| what | why |")[2].partition("\n\n")[0]
    described = [row.split("|")[1].strip(" `") for row in table.splitlines()[2:]]
    assert described == [patch.name for patch in PATCHES]
