"""Importing llmint8: cheap, and without anything that is not needed to run."""

import statistics
import subprocess
import sys

import pytest


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_costs_less_than_a_third_of_a_second_beyond_torch_and_transformers() -> None:
    code = "import time, torch, transformers; t = time.perf_counter(); import llmint8; print(time.perf_counter() - t)"
    assert statistics.median(float(python(code)) for _ in range(3)) < 0.3


def test_works_without_triton_a_compiler_and_every_extra() -> None:
    absent = ["triton", "gradio", "rich", "typer", "gguf", "bitsandbytes", "peft", "matplotlib", "hypothesis", "psutil"]
    code = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
        "import os; os.environ['PATH'] = ''\n"
        "import llmint8, torch\n"
        "model = llmint8.quantize_(torch.nn.Sequential(torch.nn.Linear(32, 8)))\n"
        "print(model(torch.ones(20, 32)).shape)"
    )
    assert python(code) == "torch.Size([20, 8])"


def test_does_not_import_the_modelling_code_of_transformers() -> None:
    code = "import sys, llmint8; print([m for m in ('transformers.modeling_utils', 'accelerate') if m in sys.modules])"
    assert python(code) == "[]"


def test_does_not_import_torch_before_it_is_needed() -> None:
    code = (
        "import sys, llmint8; llmint8.Int8Config(); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_operators_are_there_with_torch_in_either_order() -> None:
    use = "print(torch.ops.llmint8.rms_norm(torch.ones(1, 4), torch.ones(4), 0.0, False).tolist())"
    assert python(f"import llmint8, torch; {use}") == "[[1.0, 1.0, 1.0, 1.0]]"
    assert python(f"import torch, llmint8; {use}") == "[[1.0, 1.0, 1.0, 1.0]]"


def test_every_name_and_module_is_there() -> None:
    code = (
        "import llmint8; assert set(llmint8.__all__) <= set(dir(llmint8));"
        "[getattr(llmint8, name) for name in llmint8.__all__]; from llmint8 import *;"
        "print(llmint8.functional.__name__, llmint8.quantize.__name__, hasattr(llmint8, 'nothing'))"
    )
    assert python(code) == "llmint8.functional llmint8.quantize False"


@pytest.mark.parametrize(
    "module",
    [
        "functional",
        "kernels.reference.int8_linear",
        "integrations.patches",
        "integrations.transformers.fused",
        "integrations.transformers.quantizer",
        "integrations.transformers.saving",
    ],
)
def test_a_module_can_be_imported_before_torch_and_transformers(module: str) -> None:
    use = "import torch; print(torch.ops.llmint8.rotate.default.name())"
    assert python(f"import llmint8.{module}; {use}") == "llmint8::rotate"


def test_a_module_is_there_without_an_import() -> None:
    assert python("import llmint8; print(llmint8.functional.INT8_MAX)") == "127"


def test_registers_whenever_transformers_is_imported() -> None:
    check = (
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; import transformers.modeling_utils as u;"
        "print('llmint8' in m, u.PreTrainedModel.save_pretrained.__code__.co_filename.endswith('saving.py'))"
    )
    expected = "True True"
    assert python(f"import llmint8; {check}") == expected
    assert python(f"import transformers.modeling_utils, llmint8; {check}") == expected


def test_settings_of_a_checkpoint_are_known_before_the_modelling_code_is_imported() -> None:
    code = (
        "import sys, llmint8; from transformers.quantizers.auto import AutoQuantizationConfig as a;"
        "assert 'transformers.modeling_utils' not in sys.modules;"
        "print(type(a.from_dict({'quant_method': 'llmint8', 'budget': 3})).__name__)"
    )
    assert python(code) == "Int8Config"


def test_a_probe_or_an_interrupted_import_does_not_lose_the_registration() -> None:
    check = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; print('llmint8' in m)"
    probe = "import importlib.util; importlib.util.find_spec('transformers.modeling_utils')"
    assert python(f"import llmint8; {probe}; import transformers.modeling_utils; {check}") == "True"
    code = """
import sys, llmint8
sys.modules["transformers.utils.quantization_config"] = None  # makes the import fail half way
try:
    import transformers.modeling_utils
except ImportError:
    pass
del sys.modules["transformers.utils.quantization_config"]
import transformers.modeling_utils
"""
    assert python(f"{code}\n{check}") == "True"


def test_reloading_registers_once() -> None:
    code = (
        "import llmint8, importlib, transformers.modeling_utils as u; f = u.PreTrainedModel.save_pretrained;"
        "importlib.reload(llmint8); print(f is u.PreTrainedModel.save_pretrained, len(llmint8.quantize.default_skips))"
    )
    assert python(code) == "True 1"


def test_reloading_before_torch_is_imported() -> None:
    code = "import llmint8, importlib; importlib.reload(llmint8); import torch; print(bool(torch.ops.llmint8.rotate))"
    assert python(code) == "True"


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    import llmint8

    assert llmint8.__version__ == version("llmint8")
