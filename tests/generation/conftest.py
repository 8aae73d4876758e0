"""The model whose answers the engine generates."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import llmint8


@pytest.fixture(scope="session")
def int8_model(smollm2: Path) -> PreTrainedModel:
    return llmint8.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)
