"""Continuous batching: sequences join and leave between two steps, and the bits of an answer do not depend on it.

transformers' own continuous batching has one configuration for all requests (no greedy answer beside a sampled one, no
seed, no stop sequence of a request's own), and on a CPU it pads nothing but masks everything: each token looks at
the cache of every sequence. Here a prompt is read alone, in pieces, between which the others get their tokens, and
decoding steps take so few rows that int8 layers do not quantize them. So a sequence has the same bits in any company.
"""

import contextlib
import functools
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from llmint8.generation import probe, ragged_batch
from llmint8.generation.answer import Answer, ClosedError, QueueFullError
from llmint8.generation.sampling import Sampler
from llmint8.generation.text import TextStream
from llmint8.kernels import backend
from llmint8.runtime import threads

logger = logging.get_logger(__name__)

# Answers at the same time, at most, unless somebody asks for more: each has a cache.
_MOST_SLOTS = 32
# Tokens of a piece of a prompt: so many that reading is not slower, and so few that others do not wait long.
_PIECE_CPU, _PIECE_GPU = 256, 2048


class Engine:
    """One thread that generates the answers of one model.

    Attributes:
        slots: Answers that are generated at the same time.
        piece: Most tokens of a prompt that are read at once; None for all of them.
        max_queue: Requests that may wait for a place.
    """

    def __init__(self, model: Any, tokenizer: Any, *, slots: int | None = None, max_queue: int = 64) -> None:
        """Starts the thread.

        Args:
            model: A transformers model.
            tokenizer: A fast one of transformers.
            slots: Answers that are generated at the same time; None for as many as there are rows in a step, and 32
                at most.
            max_queue: Requests that may wait for a place.

        Raises:
            ValueError: A number is too small, or the model has no cache that could be used.
        """
        rows = backend.decode_rows(model.device)  # int8 layers do not quantize so few, and each has its own bits
        slots = min(rows, _MOST_SLOTS) if slots is None else slots
        if slots < 1:
            raise ValueError(f"answers at the same time must be at least 1, got {slots}")
        if max_queue < 0:
            raise ValueError(f"max_queue must be at least 0, got {max_queue}")
        self.model, self.tokenizer = model, tokenizer
        self.max_queue = max_queue
        self._rows = rows
        accepted = inspect.signature(model.forward).parameters
        names = [name for name in ("cache", "past_key_values") if name in accepted]  # from transformers 5.24 on, before
        if not names:
            raise ValueError(f"{type(model).__name__} has no cache of keys and values, which serving needs")
        self._cache_name = names[0]
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        ragged_batch.enable()
        self.slots = slots if slots == 1 or self._can_batch() else 1
        self.piece = self._choose_piece() if self.slots > 1 else None  # where nobody waits, there is no need
        self._lock = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._closed = False
        self._members: list[Answer] = []
        self._caches: dict[int, ragged_batch.RaggedCache] = {}
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def _can_batch(self) -> bool:
        fault: str | None = "its attention, its positions or what it remembers are not of a kind that can be batched"
        if ragged_batch.can_batch(self.model):
            fault = probe.find_fault(self.model, self._cache_name)
        if fault is not None:
            name = type(self.model).__name__
            logger.warning("llmint8: answers are generated one after another, since %s cannot batch: %s", name, fault)
        return fault is None

    def _choose_piece(self) -> int | None:
        if probe.reads_pieces(self.model, self._cache_name):
            return _PIECE_CPU if self.model.device.type == "cpu" else _PIECE_GPU
        name = type(self.model).__name__
        logger.warning("llmint8: answers wait while a long prompt is read, since %s reads none in pieces", name)
        return None

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return sum(answer.finish_reason is None for answer in list(self._running))

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(
        self,
        prompt: list[int],
        config: GenerationConfig,
        send: Callable[[str | None], None],
        *,
        stop: Sequence[str] = (),
        seed: int | None = None,
        penalties: tuple[float, float] = (0.0, 0.0),
        continues: bool = False,
    ) -> Answer:
        """Queues a request.

        Args:
            prompt: At least one token.
            config: How to choose; has `max_new_tokens`.
            send: Called in the engine's thread with each piece of text, and with None once the answer is over.
            stop: Strings that end it and are not part of it.
            seed: The same answer for the same seed.
            penalties: OpenAI's, frequency and presence.
            continues: Whether the answer goes on with the text of the prompt, and does not begin one.

        Raises:
            QueueFullError: Too many wait already.
            ClosedError: After `close`.
        """
        ends = config.eos_token_id
        answer = Answer(
            prompt,
            config.max_new_tokens or 1,
            frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
            lambda: Sampler(self.model, config, len(prompt), seed, penalties),
            TextStream(self.tokenizer, stop, prompt if continues else ()),
            send,
        )
        with self._lock:
            self.check_room()
            self._waiting.append(answer)
            self._lock.notify()
        return answer

    def check_room(self, others: int = 0) -> None:
        """Checks that a request would be taken.

        Args:
            others: Requests that are about to come.

        Raises:
            QueueFullError: Too many wait already.
            ClosedError: After `close`.
        """
        if self._closed or not self.is_alive():
            raise ClosedError
        if self.waiting + self.running + others >= self.slots + self.max_queue:
            raise QueueFullError

    def close(self, seconds: float = 5.0) -> None:
        """Takes no more requests, cancels those there are, and waits for the thread.

        Args:
            seconds: To wait.
        """
        with self._lock:
            self._closed = True
            for answer in (*self._waiting, *self._running):
                answer.cancel()
            self._lock.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
            with torch.inference_mode(), self._managed_threads():
                while self._turn():
                    pass

    @contextlib.contextmanager
    def _managed_threads(self) -> Iterator[None]:
        if self.model.device.type == "cpu" and threads.is_managed(self.model):
            with threads.generation():
                yield
        else:
            yield

    def _turn(self) -> bool:
        """Gives those who wait the places there are, reads a piece of one prompt, and takes a step with all others.

        One piece a turn, so that those who are answered already wait for no more; prompts take turns.

        Returns:
            Whether there is more to do.
        """
        with self._lock:
            for answer in [a for a in self._waiting if a.cancelled]:
                self._waiting.remove(answer)
                self._finish(answer, "cancelled")
            for answer in [a for a in self._running if a.cancelled]:
                self._finish(answer, "cancelled")
            self._running = [a for a in self._running if a.finish_reason is None]
            while self._waiting and len(self._running) < self.slots:
                self._running.append(self._waiting.popleft())
            unread = next((a for a in self._running if not a.is_read), None)
            if unread is not None:  # to the end: each has its turn before this one has the next
                self._running.remove(unread)
                self._running.append(unread)
        if unread is not None:
            self._attempt([unread], self._read)
        batch = [answer for answer in self._running if answer.is_read and answer.finish_reason is None]
        if batch != self._members:
            self._members = batch
            self._caches.clear()
        for first in range(0, len(batch), self._rows):
            self._attempt(batch[first : first + self._rows], self._step)
        with self._lock:
            self._running = [a for a in self._running if a.finish_reason is None]
            if not self._running:
                self._members = []
                self._caches.clear()  # an idle server keeps no caches
            return bool(self._running or self._waiting)

    def _attempt(self, answers: list[Answer], work: Callable[[list[Answer]], None]) -> None:
        try:
            work(answers)
        except Exception:
            logger.exception("an answer could not be generated")
            for answer in answers:
                if answer.finish_reason is None:
                    self._finish(answer, "error")

    def _read(self, answers: list[Answer]) -> None:
        """Reads a piece of the prompt of one answer; after the last one, chooses its first token."""
        (answer,) = answers
        first, device = answer.read, self.model.device
        last = len(answer.prompt) if self.piece is None else first + self.piece
        tokens = torch.tensor([answer.prompt[first:last]], device=device)
        options: dict[str, Any] = dict(self._last_logits_only)
        if first == 0:
            answer.sampler = answer.make_sampler()
            answer.cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
            options[self._cache_name] = answer.cache
        else:
            options[self._cache_name] = ragged_batch.RaggedCache([answer.cache])
            options["position_ids"] = torch.arange(first, first + tokens.shape[1], device=device)[None]
        logits = self.model(input_ids=tokens, use_cache=True, **options).logits
        answer.read += tokens.shape[1]
        if answer.is_read:
            self._choose([answer], logits[:, -1])

    def _step(self, answers: list[Answer]) -> None:
        """Chooses the next token of each; where that fails for all together, of one after another."""
        if len(answers) == 1:
            self._choose(answers, self._logits(answers))
            return
        saved = [ragged_batch.save(answer.cache) for answer in answers]
        logits = None
        try:
            logits = self._logits(answers)
        except Exception:
            logger.exception("llmint8: a step of %d answers failed; each is tried alone", len(answers))
        if logits is not None:
            self._choose(answers, logits)
            return
        self._caches.clear()  # out of the handler, which keeps what takes the memory
        for answer, state in zip(answers, saved, strict=True):
            ragged_batch.restore(answer.cache, state, answer.length)
        for answer in answers:
            self._attempt([answer], self._step)

    def _logits(self, answers: list[Answer]) -> torch.Tensor:
        """The logits of the next token of each, [B, vocabulary]."""
        device = self.model.device
        tokens = torch.tensor([[answer.tokens[-1]] for answer in answers], device=device)
        options = {self._cache_name: self._cache_of(answers)}
        if self.slots > 1:  # alone, positions are the model's own affair, and some do not count from 0
            options["position_ids"] = torch.tensor([[answer.length] for answer in answers], device=device)
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=True, **options).logits[:, -1]
        return logits

    def _choose(self, answers: list[Answer], logits: torch.Tensor) -> None:
        """Gives each its next token; those that are the largest are looked for together."""
        samplers = [answer.sampler for answer in answers]
        largest = logits.float().argmax(-1).tolist() if any(s is not None and s.takes_largest for s in samplers) else []
        for i, answer in enumerate(answers):
            self._attempt([answer], functools.partial(self._take, logits=logits[i], largest=largest[i : i + 1]))

    def _cache_of(self, answers: list[Answer]) -> Any:
        """The cache of a step; one of several rows is kept as long as nobody comes or goes."""
        if len(answers) == 1:
            return answers[0].cache
        kept = self._caches.get(id(answers[0]))
        if kept is None:
            kept = self._caches[id(answers[0])] = ragged_batch.RaggedCache([answer.cache for answer in answers])
        return kept

    def _take(self, answers: list[Answer], logits: torch.Tensor, largest: list[int]) -> None:
        (answer,) = answers
        assert answer.sampler is not None  # made when the prompt was read
        if answer.sampler.takes_largest:
            (token,) = largest
        else:
            token = answer.sampler.choose([*answer.prompt, *answer.tokens], logits)
        answer.tokens.append(token)
        if answer.first is None:
            answer.first = time.perf_counter()
        if token in answer.end:
            self._finish(answer, "stop")
            return
        if text := answer.text.add(token):
            answer.send(text)
        if answer.text.stopped:
            self._finish(answer, "stop")
        elif len(answer.tokens) >= answer.max_tokens:
            self._finish(answer, "length")

    def _finish(self, answer: Answer, reason: str) -> None:
        answer.cache = None
        answer.finish_reason = reason
        if rest := answer.text.finish():
            answer.send(rest)
        answer.send(None)
