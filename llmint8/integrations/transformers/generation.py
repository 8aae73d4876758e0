"""Generation with int8 models on a CPU that other programs use, too."""

import functools
from collections.abc import Callable
from typing import Any

from llmint8.runtime import threads


def managing_threads(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `generate` for models with int8 layers on a CPU; others generate as before.

    Args:
        original: `GenerationMixin.generate`, or what stands in its place.
    """

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.device.type != "cpu" or not threads.is_managed(self):
            return original(self, *args, **kwargs)
        with threads.generation():
            return original(self, *args, **kwargs)

    return generate
