"""Functions are the same by their code, not by their names."""

import functools
from collections.abc import Callable

from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaRMSNorm
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral

from llmint8.integrations.transformers.fused.same_code import same_code


def one(x: int, y: int = 2) -> int:
    """Documented."""
    return x + y


def same(x: float, y: float = 2) -> float:
    return x + y


def other_default(x: int, y: int = 3) -> int:
    return x + y


def other_code(x: int, y: int = 2) -> int:
    return x - y


def other_constant(x: int, y: int = 2) -> int:
    return x + y + 1


def decorated(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapper(*args: int) -> int:
        return function(*args)

    return wrapper


def test_same_code() -> None:
    assert same_code(one, same)
    assert same_code(decorated(one), same)
    assert not same_code(one, other_default)
    assert not same_code(one, other_code)
    assert not same_code(one, other_constant)
    assert not same_code(one, len)


def test_of_transformers() -> None:
    assert same_code(llama.LlamaRMSNorm.forward, mistral.MistralRMSNorm.forward)
    assert same_code(llama.LlamaAttention.forward, GemmaAttention.forward)
    assert not same_code(llama.LlamaRMSNorm.forward, GemmaRMSNorm.forward)
    assert not same_code(llama.LlamaAttention.forward, mistral.MistralAttention.forward)
