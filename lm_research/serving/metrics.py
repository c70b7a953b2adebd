"""What a server counts, for Prometheus."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server; `batcher` and `alone` are asked who is under way and who waits."""

    def __init__(self, batcher: Any, alone: Any) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("lm_requests", "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "lm_request_seconds", "Until the answer, or its stream, begins", ["path"], registry=registry
        )
        self.tokens = Counter("lm_tokens", "Tokens read and said", ["kind"], registry=registry)
        self.disconnects = Counter("lm_disconnects", "Clients that went before their answer", registry=registry)
        for place, prefix, what in ((batcher, "", "Texts in slots"), (alone, "alone_", "Requests that run alone")):
            for name, text in (("active", what), ("waiting", f"{what}: before them")):
                gauge = Gauge(f"lm_{prefix}{name}", text, registry=registry)
                gauge.set_function(lambda place=place, name=name: getattr(place, name, 0))

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
