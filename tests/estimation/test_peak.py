"""The peak of a run is that of a process that really runs the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import llmint8

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "peak_worker.py"
SHAPES = ("1x2048", "4x512")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 211 MB in 8 bit: large enough for the allocator's own use and code made at run time not to matter."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=24000,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("bits", [8, 16])
def test_the_peak_is_within_5_percent(bits: int, checkpoint: Path) -> None:
    """Everything that is allocated is known; 5 % are what threads, the allocator and oneDNN's compiled code may take.

    malloc is told to give large blocks back as soon as they are freed, so that what is measured is what is in use.
    """
    command = [sys.executable, str(WORKER), str(checkpoint), str(bits), *SHAPES]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout.splitlines()[-1])
    for shape in SHAPES:
        batch, context = map(int, shape.split("x"))
        estimate = llmint8.estimate(checkpoint, context=context, batch=batch, device="cpu")
        footprint = estimate.int8 if bits == 8 else estimate.unquantized
        assert footprint.weights.total > 200e6
        assert footprint.total == pytest.approx(peaks[shape], rel=0.05)
