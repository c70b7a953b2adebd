"""What is said when a bucket refuses, for both services."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.clouds import served
from lm_research.common import buckets, disk
from lm_research.common.bucket_copies import BucketCopy, names
from lm_research.common.disk import DiskError
from lm_research.common.paths import as_path
from lm_research.config import resolve
from lm_research.errors import ConfigError
from lm_research.tokenizers.word_vocabulary import read_vocabulary

ASKED: dict[str, Callable[[Any], object]] = {
    "read": buckets.read,
    "open": lambda path: path.read_bytes(),
    "list": lambda path: names(path.parent),
    "walk": lambda path: list(path.parent.iterdir()),
    "write": lambda path: buckets.write(path, b"1"),
    "create": lambda path: buckets.create(path.with_name("new"), b"1"),
    "remove": lambda path: path.unlink(),
}


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_every_request_that_is_refused_says_so(scheme: str) -> None:
    with served(scheme) as server:
        path = as_path(f"{scheme}://bucket/a/x")
        buckets.write(path, b"1")
        server.denied.update({"bucket", "GET", "HEAD", "PUT", "POST", "DELETE"})
        for name, ask in ASKED.items():
            with pytest.raises(Exception) as raised:  # of any class of the clients
                ask(path)
            told = disk.as_disk_error(raised.value)
            assert "cannot be used: permission denied. Let the account" in str(told), (name, raised.value)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_what_is_not_there_is_called_so(scheme: str) -> None:
    with served(scheme):
        for address in ("bucket/a/x", "none/a/x"):
            path = as_path(f"{scheme}://{address}")
            for ask in (buckets.read, lambda path: path.read_bytes()):
                with pytest.raises(FileNotFoundError) as raised:
                    ask(path)
                assert "cannot be used: no such bucket or object. Check the address" in str(
                    disk.as_disk_error(raised.value)
                )


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_an_output_that_cannot_be_stored_is_told_before_the_work(scheme: str) -> None:
    with served(scheme) as server:
        path = as_path(f"{scheme}://bucket/answers.jsonl")
        with BucketCopy.of_file(path) as local:
            local.write_text("one\n")
        assert names(path.parent) == ["answers.jsonl"] and buckets.read(path) == b"one\n"
        server.denied.update({"bucket", "PUT"})
        with (
            pytest.raises(DiskError, match=f"^{path.parent} cannot be used: permission denied"),
            BucketCopy.of_file(path),
        ):
            pytest.fail("the work has begun")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_lines_of_limited_length_are_read(scheme: str) -> None:
    with served(scheme):
        path = as_path(f"{scheme}://bucket/x.txt")
        buckets.write(path, b"one\ntwo\n")
        with buckets.open_object(path) as file:
            assert [file.readline(2), file.readline(9), file.read()] == [b"on", b"e\n", b"two\n"]


def test_a_vocabulary_is_read_and_local_checkpoints_are_refused() -> None:
    with served("gs"):
        buckets.write(as_path("gs://bucket/words.txt"), b"river\nstone\n")
        assert read_vocabulary("gs://bucket/words.txt") == b"river\nstone\n"
    with pytest.raises(
        ConfigError, match=r"checkpoint.local_directory=gs://bucket/local is in a bucket. Give a directory"
    ):
        resolve({"data": {"source": "x"}, "checkpoint": {"local_directory": "gs://bucket/local"}})


def test_missing_credentials_are_not_blamed_on_the_network() -> None:
    error = type("NoCredentialsError", (Exception,), {"__module__": "botocore.exceptions"})(
        "Unable to locate credentials"
    )
    told = str(disk.as_disk_error(error, place="s3://bucket/run"))
    assert told.startswith("s3://bucket/run cannot be used: no valid credentials. Let the account"), told
