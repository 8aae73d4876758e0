import subprocess
import sys
from pathlib import Path

import pytest

import llmint8.kernels.cpu

ROOT = Path(llmint8.kernels.cpu.__path__[0]).parent.parent


@pytest.mark.slow
def test_the_folder_is_not_taken_for_a_package_of_hugging_face() -> None:
    """Transformers looks for a package `kernels`; in the root of the repository it must not find our folder."""
    code = (
        "from transformers.utils import is_kernels_available\n"
        "from transformers import LlamaForCausalLM\n"
        "import kernels\n"
        "print(is_kernels_available(), getattr(kernels, '__file__', None))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False None"  # no more than a name for a folder


def test_kernels_are_installed_below_our_package() -> None:
    code = "import llmint8.kernels.cpu.int8_linear as m; print(m.__name__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "llmint8.kernels.cpu.int8_linear"
