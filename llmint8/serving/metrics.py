"""Metrics for Prometheus."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from llmint8.generation.engine import Engine
from llmint8.serving.record import Record

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Engine, paths: frozenset[str]) -> None:
        """Makes a registry of its own.

        Args:
            engine: Whose queue is shown.
            paths: That are counted by name.
        """
        self._registry, self._paths = CollectorRegistry(), paths
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        place: dict[str, Any] = {"namespace": "llmint8", "registry": self._registry}
        self._requests = Counter("requests", "Requests that were answered.", ["path", "status"], **place)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts.", **place)
        self._completion = Counter("completion_tokens", "Tokens that were generated.", **place)
        self._first = Histogram("first_token_seconds", "Until the first token.", buckets=_SECONDS, **place)
        self._seconds = Histogram("request_seconds", "Of a request with an answer.", buckets=_SECONDS, **place)
        Gauge("running", "Answers that are being generated.", **place).set_function(lambda: engine.running)
        Gauge("waiting", "Requests that wait for a place.", **place).set_function(lambda: engine.waiting)

    def count(self, record: Record) -> None:
        """Counts a request that is over.

        Args:
            record: What is known of the request.
        """
        path = record.path if record.path in self._paths else "other"
        self._requests.labels(path, record.status).inc()
        if (answer := record.answer) is None:
            return
        self._prompt.inc(len(answer.prompt))
        self._completion.inc(len(answer.tokens))
        self._seconds.observe(time.perf_counter() - record.start)
        if answer.first is not None:
            self._first.observe(answer.first - record.start)

    def text(self) -> bytes:
        """Returns all metrics in the format of Prometheus."""
        return generate_latest(self._registry)
