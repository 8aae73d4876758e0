"""A tiny model that has a tokenizer, and a way to run the command."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

from llmint8.cli.main import make_app


@pytest.fixture(scope="session")
def chat_checkpoint(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama of random weights, bf16, with the tokenizer of the default model."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    torch.manual_seed(0)
    sizes = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=512)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="10MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, folder)
    return folder


@pytest.fixture(scope="session")
def int8_checkpoint(chat_checkpoint: Path) -> Path:
    """The same, int8."""
    import llmint8

    return llmint8.quantize_checkpoint(chat_checkpoint, chat_checkpoint.with_name("int8")).folder


@pytest.fixture
def llmint8_command() -> Callable[..., Result]:
    """Returns a function that runs `llmint8` with arguments."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(make_app(), list(map(str, arguments)))

    return run


@pytest.fixture
def refused(llmint8_command: Callable[..., Result]) -> Callable[..., None]:
    """Returns a function that checks that a command is refused with a message, in one line and with status 2."""

    def check(message: str, *arguments: object) -> None:
        result = llmint8_command(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("llmint8: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not result.stdout

    return check
