"""Generation with int8 models on a CPU that other programs use, too."""

import functools
from typing import Any

from transformers.generation import GenerationMixin

from llmint8.kernels.cpu import forward_pass


def look_after_threads(cls: type[GenerationMixin]) -> None:
    """Wraps `generate` of a class for models with int8 layers on a CPU; others generate as before.

    Args:
        cls: `GenerationMixin`.
    """
    original = cls.generate

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.device.type != "cpu" or not forward_pass.is_watched(self):
            return original(self, *args, **kwargs)
        with forward_pass.generation():
            return original(self, *args, **kwargs)

    cls.generate = generate
