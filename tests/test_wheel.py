"""The wheel: every package of the source tree is in it, and it works where the source tree is not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from llmint8.kernels.cpu import native

ROOT = Path(__file__).parent.parent
LEFT_OUT = {"README.md"}  # read beside the code, not needed to run it

GENERATE = """
import json

from transformers import AutoTokenizer

import llmint8
from llmint8.default_model import default_model
from llmint8.kernels.cpu import native

folder = default_model()
tokenizer, model = AutoTokenizer.from_pretrained(folder), llmint8.from_pretrained(folder)
prompt = tokenizer("The capital of France is", return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
print(json.dumps({
    "text": tokenizer.decode(answer[0]),
    "native": native.is_loaded(),
    "files": [llmint8.__file__, native.__file__],
}))
"""


def copy_of_the_sources(folder: Path) -> Path:
    """What a build reads: building in the source tree would leave build/ and *.egg-info behind."""
    leftovers = shutil.ignore_patterns("__pycache__", "prebuilt")
    for name in ("llmint8", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=leftovers)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(sources: Path, output: Path) -> Path:
    """Builds a wheel without the network: setuptools is that of the `test` extra."""
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", output, sources]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = output.glob("*.whl")
    return wheel


def installed_names(sources: Path) -> set[str]:
    """Where each file of the source tree belongs in a wheel."""
    names = set()
    for top, package in (("llmint8", "llmint8"), ("kernels", "llmint8/kernels")):
        for path in (sources / top).rglob("*"):
            if path.is_file() and path.name not in LEFT_OUT:
                names.add(str(PurePosixPath(package) / path.relative_to(sources / top).as_posix()))
    return names


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def run_without_the_source_tree(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code where llmint8 is found in a folder, and would not be found without it."""
    others = [entry for entry in sys.path if entry and not Path(entry, "llmint8").exists()]

    def run(code: str, *first: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*first, *others]))}
        command = [sys.executable, "-S", "-c", code]  # -S: without what an editable installation adds
        return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)

    assert "No module named 'llmint8'" in run("import torch, llmint8").stderr
    return run(code, folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy_of_the_sources(folder / "sources"), folder / "output")


def test_holds_every_file_of_the_source_tree_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    assert names_in(wheel) == installed_names(copy_of_the_sources(tmp_path / "sources"))


def make_packages(sources: Path, *names: str) -> None:
    for name in names:
        (sources / name).mkdir()
        (sources / name / "__init__.py").touch()


def test_a_new_folder_is_in_it_without_touching_anything(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    make_packages(sources, "llmint8/new", "llmint8/new/inner", "kernels/new", "kernels/new/inner")
    (sources / "kernels/new/csrc").mkdir()
    (sources / "kernels/new/csrc/code.cpp").touch()
    expected = installed_names(sources)
    assert {"llmint8/new/inner/__init__.py", "llmint8/kernels/new/inner/__init__.py"} <= expected
    assert names_in(build(sources, tmp_path / "output")) == expected


def test_a_new_folder_is_found_in_the_source_tree_at_once(tmp_path: Path) -> None:
    """As after `pip install -e`, which makes the folder llmint8 importable and knows the folders of that moment."""
    sources = copy_of_the_sources(tmp_path / "sources")
    make_packages(sources, "llmint8/new", "kernels/new")
    run = run_without_the_source_tree("import llmint8.new, llmint8.kernels.new as m; print(m.__file__)", sources)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()) == sources / "kernels/new/__init__.py"


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_runs_the_demo_model_where_the_source_tree_is_not(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    assert not (site / "kernels").exists()
    run = run_without_the_source_tree(GENERATE, site)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert "Paris" in found["text"]
    assert all(Path(file).is_relative_to(site) for file in found["files"])
    assert found["native"] == native.load()
