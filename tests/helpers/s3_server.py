"""A stand-in for S3: moto's server (pip install s3fs 'moto[s3]' flask flask-cors), with faults."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

from helpers.gcs_server import Faults

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>the stand-in is told to fail</Message></Error>"


@dataclasses.dataclass
class S3Server:
    """The server's application, with faults before it.

    Attributes:
      application: moto's.
      faults: answers for a share of the requests, late or 429 or 503.
      denied: methods ("PUT", "GET", ...) that are answered with 403.
      conflicts: the number of conditional writes that are answered with 409, as while another one is under way.
      refused: the number of requests that failed.
    """

    application: Callable[..., Iterable[bytes]]
    faults: Faults
    denied: set[str] = dataclasses.field(default_factory=set)
    conflicts: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.faults.seed), threading.Lock()

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            drawn, late = self._random.random(), self._random.random()
            status, code = self._random.choice((("503 Slow Down", "SlowDown"), ("429 Busy", "TooManyRequests")))
        time.sleep(late * self.faults.latency)
        if environment["REQUEST_METHOD"] in self.denied:
            status, code, drawn = "403 Forbidden", "AccessDenied", -1.0
        if "HTTP_IF_NONE_MATCH" in environment and self.conflicts:
            self.conflicts -= 1
            status, code, drawn = "409 Conflict", "ConditionalRequestConflict", -1.0
        if drawn >= self.faults.share:
            return self.application(environment, start)
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        self.refused += 1
        content = b"" if environment["REQUEST_METHOD"] == "HEAD" else _ERROR.format(code).encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
        return [content]


@contextlib.contextmanager
def served_here(**faults: float) -> Iterator[S3Server]:
    """A server with one empty bucket, named bucket, which this process and those that it starts use."""
    import boto3
    import s3fs
    from etils.epath import backend
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    server = S3Server(DomainDispatcherApplication(create_backend_app), Faults(seed=1))
    listener = make_server("127.0.0.1", 0, server, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.server_port}"
    reset = urllib.request.Request(f"{address}/moto-api/reset", method="POST")  # objects of earlier servers
    urllib.request.urlopen(reset).close()
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "stand-in",
        "AWS_SECRET_ACCESS_KEY": "stand-in",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def forget() -> None:
        s3fs.S3FileSystem.clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()

    try:
        with mock.patch.dict(os.environ, variables):
            forget()
            boto3.client("s3").create_bucket(Bucket="bucket")
            server.faults = Faults(seed=1, **faults)
            yield server
    finally:
        forget()
        listener.shutdown()
        thread.join()
