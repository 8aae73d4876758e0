"""What it takes to add a backend: this file has one that counts its calls, and runs a model through it.

A process of its own runs it, without the native kernels, which bind themselves to a CPU for good once they are loaded.
"""

import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import Tensor


def add_toy_backend() -> list[str]:
    """Puts a backend before all others; returns the names of the operators that it has run, as they come."""
    from llmint8.kernels import backend
    from llmint8.kernels.reference import int8_linear as reference
    from llmint8.outliers import OutlierRule

    calls: list[str] = []

    def int8_linear(
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        outlier_columns: Tensor | None,
        rule: OutlierRule,
    ) -> Tensor:
        if x.dtype == torch.float64:
            return NotImplemented
        calls.append("int8_linear")
        return reference.int8_linear(x, weight, weight_scale, bias, outlier_columns, rule)

    module = types.ModuleType("toy_kernels")
    module.int8_linear = int8_linear  # type: ignore[attr-defined]
    module.workspace = lambda operator, args, architecture: 1000 if operator == "int8_linear" else 0  # type: ignore[attr-defined]
    sys.modules["toy_kernels"] = module
    toy = backend.Backend(
        "toy",
        takes=lambda x, *_: x.is_cpu,
        takes_device=lambda device: device.type == "cpu",
        decode_rows=lambda device: 3,
        modules={"int8_linear": "toy_kernels"},
        device_type="cpu",
        workspaces="toy_kernels",
    )
    backend.BACKENDS = (toy, *backend.BACKENDS)
    return calls


def main() -> None:
    """Loads, runs, saves, reloads and estimates a model with the toy backend."""
    import transformers

    import llmint8
    from llmint8.estimation.workspace import Device, workspace
    from llmint8.kernels import backend

    calls = add_toy_backend()
    assert backend.backend_of("cpu").name == "toy"
    assert backend.decode_rows("cpu") == 3
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=160, **sizes)).eval()
    tokens = torch.randint(160, (2, 20))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(Path(folder, "float"))
        int8 = llmint8.from_pretrained(Path(folder, "float"))
        expected = int8(tokens).logits
        assert calls == ["int8_linear"] * 14
        int8.save_pretrained(Path(folder, "int8"))
        again = llmint8.from_pretrained(Path(folder, "int8"))
        assert torch.equal(again(tokens).logits, expected)
        assert len(calls) == 28
        assert llmint8.estimate(Path(folder, "int8"), device="cpu").int8.workspace > 0
    x = torch.empty(2, 64, device="meta")
    assert workspace("llmint8::int8_linear", (x,), Device("cpu")) == 1000
    print("ran through the toy backend")


def test_a_backend_is_added_in_one_file() -> None:
    environment = {**os.environ, "LLMINT8_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("ran through the toy backend"), run.stderr


if __name__ == "__main__":
    main()
