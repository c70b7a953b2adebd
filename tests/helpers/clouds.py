"""Stand-ins for both services that have buckets."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from helpers import gcs_server, s3_server


def served(scheme: str, **faults: float) -> contextlib.AbstractContextManager[Any]:
    """Serve the bucket gs://bucket or s3://bucket to this process; skip the test where the packages for it are missing."""
    for package in {"gs": ("gcsfs",), "s3": ("s3fs", "moto.server")}[scheme]:
        pytest.importorskip(package)
    return {"gs": gcs_server, "s3": s3_server}[scheme].served_here(**faults)
