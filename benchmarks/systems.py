"""The systems that are compared: each loads a checkpoint and runs it, one class a system."""

import itertools
import time
from pathlib import Path
from typing import Any, Protocol

import torch


class System(Protocol):
    """A loaded model."""

    def prefill(self, prompt: int, batch: int) -> float:
        """Returns the seconds that a prompt of so many tokens takes, up to the logits of the last one."""

    def decode(self, prompt: int, batch: int, tokens: int) -> list[float]:
        """Returns the seconds of each generated token after the first."""


class Transformers:
    """A model of transformers, through `model(...)` and `model.generate`."""

    def __init__(self, checkpoint: Path, **options: Any) -> None:
        """Loads a checkpoint in bf16."""
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, **options)

    def prefill(self, prompt: int, batch: int) -> float:
        """Times one call."""
        tokens = _tokens(prompt, batch)
        with torch.no_grad():
            start = time.perf_counter()
            self.model(tokens, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - start

    def decode(self, prompt: int, batch: int, tokens: int) -> list[float]:
        """Times the tokens of one `generate`."""
        times: list[float] = []

        def note_the_time(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

        self.model.generate(
            _tokens(prompt, batch),
            attention_mask=torch.ones(batch, prompt, dtype=torch.long),
            min_new_tokens=tokens + 1,
            max_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[note_the_time],
        )
        return [end - start for start, end in itertools.pairwise(times)]


class LlmInt8(Transformers):
    """This library, with its defaults."""

    def __init__(self, checkpoint: Path) -> None:
        """Quantizes a checkpoint as it is loaded."""
        import llmint8

        self.model = llmint8.from_pretrained(checkpoint, load_in_8bit=True)


class LlmInt8Head(Transformers):
    """This library with its head in 8 bit, too, as llama.cpp has it."""

    def __init__(self, checkpoint: Path) -> None:
        """Quantizes a checkpoint as it is loaded."""
        import llmint8

        self.model = llmint8.from_pretrained(checkpoint, load_in_8bit=True, include_modules=["lm_head"])


class BitsAndBytes(Transformers):
    """bitsandbytes through transformers' `load_in_8bit`."""

    def __init__(self, checkpoint: Path) -> None:
        """Quantizes a checkpoint as it is loaded."""
        import logging

        import transformers

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call, which takes time
        super().__init__(checkpoint, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))


class LlamaCpp:
    """llama.cpp in Q8_0 through llama-cpp-python."""

    def __init__(self, checkpoint: Path) -> None:
        """Converts a checkpoint, once, and maps it."""
        from gguf_export import q8_0
        from llama_cpp import Llama

        file = q8_0(checkpoint, checkpoint.with_name(f"{checkpoint.name}-q8_0.gguf"))
        threads = torch.get_num_threads()
        self.model = Llama(str(file), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def prefill(self, prompt: int, batch: int) -> float:
        """Times one call."""
        assert batch == 1
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(_tokens(prompt, 1)[0].tolist())
        return time.perf_counter() - start

    def decode(self, prompt: int, batch: int, tokens: int) -> list[float]:
        """Times tokens that follow a prompt."""
        self.prefill(prompt, batch)
        times = [time.perf_counter()]
        for token in _tokens(tokens, 1)[0].tolist():
            self.model.eval([token])
            times.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(times)]


SYSTEMS: dict[str, type[System]] = {
    "llmint8": LlmInt8,
    "llmint8 with an 8-bit head": LlmInt8Head,
    "bf16": Transformers,
    "bitsandbytes": BitsAndBytes,
    "llama.cpp": LlamaCpp,
}


def _tokens(count: int, batch: int) -> torch.Tensor:
    return torch.randint(100, 40000, (batch, count), generator=torch.Generator().manual_seed(0))
