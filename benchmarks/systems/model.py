"""What a loaded system answers."""

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Model(Protocol):
    """A loaded model; every method waits until what it started is done."""

    vocabulary: int

    def prefill(self, prompt: int, batch: int) -> float:
        """Returns the seconds that prompts of so many tokens take, up to the logits of the last one."""

    def decode(self, prompt: int, batch: int, tokens: int, limit: float) -> list[float]:
        """Returns the seconds of each step of generation: to the first token, and then of one token a sequence.

        Args:
            prompt: Tokens of each prompt.
            batch: Number of sequences.
            tokens: Steps after the first token.
            limit: Seconds after which there is no further step, once there are three.
        """

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Returns the log probabilities of each next token: int64 [tokens] to fp32 [tokens, vocabulary]."""

    def weight_bytes(self) -> tuple[int, int]:
        """Returns the bytes of the weights, and those of them that a step of one token reads."""


STEPS_AT_LEAST = 3


def random_tokens(count: int, batch: int, vocabulary: int) -> Tensor:
    """Returns the tokens of a prompt, int64 [batch, count]; sequences differ, and are the same for every system."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(100, min(vocabulary, 40000), (batch, count), generator=generator)


def made_from(checkpoint: Path, kind: str) -> Path:
    """Returns where a checkpoint goes that is made from another one, in the user's cache.

    Args:
        checkpoint: Folder.
        kind: The end of the name.
    """
    from llmint8.runtime.user_cache import cache_folder

    where = hashlib.sha256(str(checkpoint.resolve()).encode()).hexdigest()[:8]
    folder = cache_folder() / "made"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{checkpoint.name}-{where}-{kind}"


def checkpoint_bytes(checkpoint: Path) -> int:
    """Returns the size of the weights: of a file, or of the safetensors files in a folder."""
    files = [checkpoint] if checkpoint.is_file() else checkpoint.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
