"""A model in this process."""

import time
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psutil
import torch
from jinja2 import TemplateError
from transformers import StoppingCriteria, TextIteratorStreamer

from llmint8.chat.source import Message, Sampling, Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 1024


class _Stop(StoppingCriteria):
    """Ends an answer at the next token once the event is set."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _Streamer(TextIteratorStreamer):
    """Counts the tokens, too."""

    def __init__(self, tokenizer: Any, statistics: Statistics) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._statistics, self._start, self._prompt = statistics, time.perf_counter(), True

    def put(self, value: torch.Tensor) -> None:
        """Gets the prompt, and then each token."""
        if not self._prompt:
            self._statistics.tokens += 1
            self._statistics.seconds = time.perf_counter() - self._start
            if self._statistics.tokens == 1:
                self._statistics.first = self._statistics.seconds
        self._prompt = False
        super().put(value)


class Local:
    """A model of transformers and its tokenizer; see `Source`."""

    def __init__(self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Takes a loaded model.

        Args:
            name: What it is called.
            model: One that generates.
            tokenizer: With a chat template.

        Raises:
            ValueError: It has none.
        """
        if not tokenizer.chat_template:
            raise ValueError(f"{name} has no chat template: it is a model that continues texts, not one to talk to")
        self.name, self._model, self._tokenizer = name, model, tokenizer
        self._thread: Thread | None = None
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def stream(self, messages: Sequence[Message], sampling: Sampling, statistics: Statistics) -> Iterator[str]:
        """Yields the pieces of an answer, which another thread generates; see `Source`."""
        inputs = self._inputs(messages)
        prompt = statistics.prompt_tokens = inputs["input_ids"].shape[1]
        most = sampling.max_tokens or MAX_TOKENS
        if self.context is not None:
            if prompt >= self.context:
                raise ValueError(
                    f"the conversation has {prompt} tokens, and the model reads {self.context} at most; "
                    "/clear begins a new one"
                )
            most = min(most, self.context - prompt)
        options: dict[str, Any] = {"max_new_tokens": most}
        if sampling.temperature is not None:
            options["do_sample"] = sampling.temperature > 0
            if sampling.temperature > 0:
                options["temperature"] = sampling.temperature
        if sampling.top_p is not None and options.setdefault("do_sample", True):
            options["top_p"] = sampling.top_p
        stop, streamer, errors = Event(), _Streamer(self._tokenizer, statistics), []

        def generate() -> None:
            try:
                if sampling.seed is not None:
                    torch.manual_seed(sampling.seed)
                self._model.generate(
                    **inputs.to(self._model.device), **options, streamer=streamer, stopping_criteria=[_Stop(stop)]
                )
            except BaseException as error:  # shown by the thread that waits for the answer
                errors.append(error)
                streamer.end()

        if self._thread is not None:  # of an answer that was left while it stopped
            self._thread.join()
        self._thread = Thread(target=generate, daemon=True)
        self._thread.start()
        try:
            yield from streamer
        finally:
            stop.set()
            self._thread.join()
        if errors:
            raise errors[0]
        statistics.truncated = statistics.tokens >= most

    def _inputs(self, messages: Sequence[Message]) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except (TemplateError, TypeError) as error:  # a role that it does not know, or text that is no text
            raise ValueError(f"{self.name} does not take these messages: {error}") from error

    def memory(self) -> int | None:
        """Returns what PyTorch holds on the GPUs, or the resident memory of the process."""
        if self._model.device.type == "cuda":
            return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))
        return int(psutil.Process().memory_info().rss)
