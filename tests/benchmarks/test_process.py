"""Systems in processes of their own."""

from pathlib import Path

import pytest
import torch
from harness.process import BenchmarkError, Process, systems
from systems import ADAPTERS, MORE_ADAPTERS
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).bfloat16().save_pretrained(folder)
    return folder


def _process(adapter: str, checkpoint: Path) -> Process:
    return Process(adapter, systems(adapter)[adapter], checkpoint, "cpu", 2, 120)


def test_every_adapter_says_what_it_is() -> None:
    found = systems(",".join(ADAPTERS + MORE_ADAPTERS))
    files = {file.stem for file in (Path(__file__).parents[2] / "benchmarks" / "systems").glob("*.py")}
    assert set(found) == files - {"__init__", "model", "hugging_face"}
    assert list(systems()) == list(ADAPTERS)
    assert len({system.name for system in found.values()}) == len(found)
    assert {"32 bit", "16 bit", "8 bit", "ours"} == {system.kind for system in found.values()}
    with pytest.raises(ValueError, match="there is no system 'none'"):
        systems("llmint8,none")


@pytest.mark.slow
def test_a_system_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    text = torch.arange(64).tolist()
    with _process("transformers_fp32", checkpoint) as reference:
        same = reference.ask("accuracy", tokens=text, window=32, reference=str(tmp_path), write=True)
        weights = reference.loaded["weights"]
    assert same["KL"] == 0.0
    assert same["top-1"] == 1.0
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert weights == pytest.approx(4 * (linear + 2 * 256 * 64 + 5 * 64), rel=0.01)  # and the rotary frequencies
    with _process("llmint8", checkpoint) as process:
        assert process.loaded["weights"] < weights / 2
        assert process.loaded["weights"] - process.loaded["weights read in a step"] == 2 * 256 * 64  # the embedding
        assert process.loaded["peak anonymous"] >= process.loaded["before loading"] > 0
        assert "llmint8" in process.loaded["versions"]
        assert process.ask("prefill", prompt=16, batch=2)["seconds"] > 0
        answer = process.ask("decode", prompt=8, batch=2, tokens=5, limit=60, device="cpu")
        assert len(answer["steps"]) == 5
        hurried = process.ask("decode", prompt=8, batch=2, tokens=5, limit=0, device="cpu")
        assert len(hurried["steps"]) == 3
        assert answer["first"] > 0
        ours = process.ask("accuracy", tokens=text, window=32, reference=str(tmp_path), write=False)
        assert 0 < ours["KL"] < 0.01
        assert ours["perplexity"] == pytest.approx(same["perplexity"], rel=0.05)
        with pytest.raises(BenchmarkError, match="TypeError"):
            process.ask("prefill", prompts=16)
        assert process.ask("prefill", prompt=16, batch=1)["seconds"] > 0  # it goes on


@pytest.mark.slow
def test_a_checkpoint_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BenchmarkError, match=r"ended with 1: \w"):
        _process("transformers_bf16", tmp_path)


def test_a_system_that_takes_too_long_is_ended(checkpoint: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"took more than 0\.2 s"):
        Process("llmint8", systems("llmint8")["llmint8"], checkpoint, "cpu", 2, 0.2)


@pytest.mark.slow
def test_who_is_asked_again_after_the_end_says_why_it_ended(checkpoint: Path) -> None:
    with _process("transformers_bf16", checkpoint) as process:
        process._limit = 0.01
        for _ in range(2):
            with pytest.raises(BenchmarkError, match="took more than"):
                process.ask("decode", prompt=32, batch=32, tokens=64, limit=60, device="cpu")
    with _process("transformers_bf16", checkpoint) as process:
        process._process.kill()
        process._process.wait()
        for _ in range(2):
            with pytest.raises(BenchmarkError, match="ended with -9"):
                process.ask("prefill", prompt=16, batch=1)


@pytest.mark.slow
def test_without_a_reference_there_is_a_perplexity_alone(checkpoint: Path, tmp_path: Path) -> None:
    with _process("transformers_bf16", checkpoint) as process:
        answer = process.ask("accuracy", tokens=list(range(64)), window=32, reference=str(tmp_path), write=False)
    assert list(answer) == ["perplexity"]
