"""Models for the tests: tiny random ones of several architectures, and the real default model."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers
from hypothesis import settings
from transformers import PreTrainedModel

from llmint8.default_model import default_model
from llmint8.integrations.transformers.fused import unfuse

transformers.utils.logging.disable_progress_bar()
# How long an example takes says more about what else the machine does.
settings.register_profile("no deadline", settings.default, deadline=None)
settings.load_profile("no deadline")

SIZES = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "max_position_embeddings": 128}


def _llama(**changes: object) -> PreTrainedModel:
    config = transformers.LlamaConfig(**SIZES, **ATTENTION, num_key_value_heads=2, **changes)
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config)


def _opt() -> PreTrainedModel:
    config = transformers.OPTConfig(
        vocab_size=160, hidden_size=64, ffn_dim=96, num_hidden_layers=2, word_embed_proj_dim=32, **ATTENTION
    )
    return transformers.OPTForCausalLM(config)


def _t5() -> PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=160, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def _bert() -> PreTrainedModel:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **ATTENTION, num_labels=3))


def _mixtral() -> PreTrainedModel:
    config = transformers.MixtralConfig(**SIZES, **ATTENTION, num_key_value_heads=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "gpt2": _gpt2,
    "opt": _opt,
    "t5": _t5,
    "mixtral": _mixtral,
    "bert": _bert,
}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Returns a function: architecture -> tiny model with seeded random weights, in evaluation mode."""

    def make(architecture: str = "llama") -> PreTrainedModel:
        torch.manual_seed(0)
        model = ARCHITECTURES[architecture]().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases are 1 and 0 by default, which hides mistakes
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    return make


@pytest.fixture
def make_checkpoint(tmp_path: Path, make_model: Callable[..., PreTrainedModel]) -> Callable[..., Path]:
    """Returns a function: architecture, dtype and keywords of `save_pretrained` -> folder of a checkpoint."""

    def make(architecture: str = "llama", dtype: torch.dtype = torch.float32, **kwargs: object) -> Path:
        folder = tmp_path / f"{architecture}-checkpoint"
        make_model(architecture).to(dtype).save_pretrained(folder, **kwargs)
        return folder

    return make


@pytest.fixture
def run_model() -> Callable[[PreTrainedModel], torch.Tensor]:
    """Returns a function: model -> its logits for a fixed batch that is long enough to be quantized."""

    def run(model: PreTrainedModel) -> torch.Tensor:
        tokens = torch.randint(0, 160, (3, 20), generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": tokens}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = tokens
        with torch.no_grad():
            return model(**inputs).logits

    return run


@pytest.fixture
def run_unfused(run_model: Callable[[PreTrainedModel], torch.Tensor]) -> Callable[[PreTrainedModel], torch.Tensor]:
    """Returns a function like `run_model` that leaves a model unfused, as hooks and compilers do, for the same bits."""

    def run(model: PreTrainedModel) -> torch.Tensor:
        unfuse(model)
        return run_model(model)

    return run


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the default model as a bf16 checkpoint."""
    return default_model()
