"""How the next token of a sequence is chosen: each has its own settings and its own random numbers."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


class Penalties(LogitsProcessor):
    """OpenAI's penalties: what an answer has said already is less likely, by its count and for having been said."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        """Keeps the settings.

        Args:
            prompt: Tokens at the beginning that do not count.
            frequency: Subtracted for each time that a token was said.
            presence: Subtracted once.
        """
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the logits with penalties.

        Args:
            input_ids: int64 [1, S].
            scores: [1, vocabulary].
        """
        said, counts = input_ids[0, self.prompt :].unique(return_counts=True)
        penalties = torch.zeros_like(scores)
        penalties[0, said] = (counts * self.frequency + self.presence).to(scores.dtype)
        return scores - penalties


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(
        self,
        model: Any,
        config: GenerationConfig,
        prompt: int,
        seed: int | None = None,
        penalties: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Prepares what transformers does to the logits for such a configuration.

        Args:
            model: A transformers model.
            config: How this sequence is generated.
            prompt: Its tokens.
            seed: Seed of its random numbers; None for others each time.
            penalties: Frequency and presence.
        """
        model._prepare_special_tokens(config, True, device=model.device)
        self._processors = LogitsProcessorList()
        if any(penalties):
            self._processors.append(Penalties(prompt, *penalties))
        self._processors += model._get_logits_processor(config, input_ids_seq_length=prompt, device=model.device)
        self._samples = bool(config.do_sample)
        self._generator = torch.Generator(model.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    @property
    def takes_largest(self) -> bool:
        """Whether it is just the largest logit that it chooses."""
        return not self._samples and not self._processors

    def choose(self, tokens: list[int], logits: Tensor) -> int:
        """Returns the next token.

        Args:
            tokens: The prompt and the answer so far.
            logits: [vocabulary].
        """
        scores = logits[None].float()
        if self._processors:
            scores = self._processors(torch.tensor([tokens], device=scores.device), scores)
        if not self._samples:
            return int(scores.argmax())
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
