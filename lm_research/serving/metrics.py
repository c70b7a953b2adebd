"""Metrics of a server for Prometheus."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lm_research.serving.batcher import Batcher
from lm_research.serving.sequential_worker import SequentialWorker


class Metrics:
    """Counters of one server, and gauges of the active and waiting texts of its batcher and its sequential worker."""

    def __init__(self, batcher: Batcher | None, sequential: SequentialWorker | None) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("lm_requests", "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "lm_request_seconds", "Seconds until the response, or its stream, begins", ["path"], registry=registry
        )
        self.tokens = Counter("lm_tokens", "Prompt and completion tokens", ["kind"], registry=registry)
        self.disconnects = Counter("lm_disconnects", "Clients that left before their response", registry=registry)
        self._add_gauges("", "texts in slots", batcher)
        self._add_gauges("alone_", "requests outside of the slots", sequential)

    def _add_gauges(self, prefix: str, what: str, worker: Batcher | SequentialWorker | None) -> None:
        active = Gauge(f"lm_{prefix}active", f"Active {what}", registry=self._registry)
        active.set_function(lambda: worker.active if worker else 0)
        waiting = Gauge(f"lm_{prefix}waiting", f"Waiting {what}", registry=self._registry)
        waiting.set_function(lambda: worker.waiting if worker else 0)

    @contextlib.contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Count a request; the yielded function takes its status, which is 500 if an exception escapes."""
        start, statuses = time.perf_counter(), [500]
        try:
            yield statuses.append
        finally:
            self._requests.labels(path, str(statuses[-1])).inc()
            self._seconds.labels(path).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
