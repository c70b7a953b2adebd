"""What a server counts, for Prometheus."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lm_research.serving.batcher import Batcher
from lm_research.serving.sequential_worker import SequentialWorker


class Metrics:
    """Counters of one server; `batcher` and `alone` are asked who is under way and who waits."""

    def __init__(self, batcher: Batcher | None, alone: SequentialWorker | None) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("lm_requests", "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "lm_request_seconds", "Until the answer, or its stream, begins", ["path"], registry=registry
        )
        self.tokens = Counter("lm_tokens", "Tokens read and said", ["kind"], registry=registry)
        self.disconnects = Counter("lm_disconnects", "Clients that went before their answer", registry=registry)
        self._watch("", "Texts in slots", batcher)
        self._watch("alone_", "Requests that run alone", alone)

    def _watch(self, prefix: str, what: str, place: Batcher | SequentialWorker | None) -> None:
        active = Gauge(f"lm_{prefix}active", what, registry=self._registry)
        active.set_function(lambda: place.active if place else 0)
        waiting = Gauge(f"lm_{prefix}waiting", f"{what}: before them", registry=self._registry)
        waiting.set_function(lambda: place.waiting if place else 0)

    @contextlib.contextmanager
    def request(self, path: str) -> Iterator[Callable[[int], None]]:
        """Counts a request; what it yields is told the status. A bug counts as 500."""
        start, found = time.perf_counter(), [500]
        try:
            yield lambda status: found.__setitem__(0, status)
        finally:
            self._requests.labels(path, str(found[0])).inc()
            self._seconds.labels(path).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        return generate_latest(self._registry)
