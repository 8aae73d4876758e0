"""Loading takes no more memory than the int8 model and its largest tensor, as benchmarks/load_memory.py measures it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "load_memory.py"


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_one_tensor_in_16_bit_at_a_time(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8
    )
    transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    command = [sys.executable, str(SCRIPT), "--worker", "llmint8", "--model", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["model"] > 120e6
    assert result["peak"] - result["before"] <= 1.15 * result["model"] + result["largest"]
