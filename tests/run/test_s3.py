"""What works at s3:// addresses, against moto's server: pip install s3fs 'moto[s3]' flask flask-cors."""

from __future__ import annotations

import pathlib
import time

import pytest

from lm_research.common import buckets
from lm_research.common.bucket_copies import BucketCopy, fetched, names
from lm_research.common.paths import as_path
from lm_research.errors import CheckpointError
from lm_research.run import run_directory

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


def test_objects_copies_and_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "stand-in",
        "AWS_SECRET_ACCESS_KEY": "stand-in",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LM_RESEARCH_LEASE_SECONDS": "1.2",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client("s3").create_bucket(Bucket="bucket")
        place, run = as_path("s3://bucket/x.json"), as_path("s3://bucket/run")
        assert [buckets.create(place, content) for content in (b"1", b"2", b"1")] == [True, False, True]
        assert buckets.read(place) == place.read_bytes() == b"1"
        for text in ("one\n", "two\n"):
            with BucketCopy(run) as copy, (copy.folder / "metrics.jsonl").open("a") as file:
                file.write(text)
        assert names(run) == ["metrics.jsonl"]
        assert (fetched(run) / "metrics.jsonl").read_text() == "one\ntwo\n"
        with run_directory.lock(run):
            time.sleep(0.5)  # it is renewed
            with pytest.raises(CheckpointError, match="s3://bucket/run is in use by another running process"):
                run_directory.lock(run)
        run_directory.lock(run).close()
        with pytest.raises(CheckpointError, match="s3://none/run cannot be written: no such bucket"):
            run_directory.lock(as_path("s3://none/run"))
    finally:
        server.stop()
    assert not pathlib.Path("s3:").exists()
