"""TFDS without TensorFlow and without a network, on a data set defined next to this file."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import sys
import types

import pytest

from lm_research.config import DataConfig
from lm_research.data.sources import fingerprint, read_documents, tfds_source
from lm_research.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")
tiny = pytest.importorskip("helpers.tiny_text_dataset")

NAME = "tfds:tiny_text_for_tests"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfds")
    builder = tfds.builder(NAME[5:], data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def read(source: str, folder: pathlib.Path, **keys: str) -> list[str]:
    return list(read_documents(source, DataConfig(tfds_dir=str(folder), **keys)))


def test_reads_every_text_once_in_one_order(prepared: pathlib.Path) -> None:
    texts = read(NAME, prepared)
    assert sorted(texts) == sorted(tiny.TRAIN)
    assert read(NAME, prepared) == texts
    assert read(f"{NAME}:1.0.0", prepared) == texts
    assert "tensorflow" not in sys.modules


def test_splits(prepared: pathlib.Path) -> None:
    assert sorted(read(f"{NAME}@test", prepared)) == sorted(tiny.TEST)
    assert read(f"{NAME}@train[:25%]", prepared) == read(NAME, prepared)[:5]
    assert len(read(f"{NAME}@train[15:]+test", prepared)) == 10


def test_many_reads_at_once_change_nothing(prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = read(NAME, prepared)
    monkeypatch.setattr(tfds_source, "_RECORDS", 3)
    assert read(NAME, prepared) == texts


def test_text_key(prepared: pathlib.Path) -> None:
    """`text` takes precedence over other text features; a key selects any of them, and only them."""
    assert read(NAME, prepared, text_key="headline")[0].startswith("Headline")
    with pytest.raises(DataError, match="text_key='headlin'.*Did you mean 'headline'"):
        read(NAME, prepared, text_key="headlin")
    with pytest.raises(DataError, match="text_key='label' is not a text feature"):
        read(NAME, prepared, text_key="label")
    with pytest.raises(DataError, match="no text feature; it has label"):
        read("tfds:tiny_numbers_for_tests", prepared)


def test_fingerprint_depends_on_version_split_and_feature(prepared: pathlib.Path) -> None:
    data = DataConfig(tfds_dir=str(prepared))
    names = [fingerprint(source, data) for source in (NAME, f"{NAME}@test", f"{NAME}@train")]
    assert "tiny_text_for_tests/1.0.0" in names[0]
    assert names[0] == names[2] != names[1]
    assert fingerprint(NAME, DataConfig(tfds_dir=str(prepared), text_key="headline")) != names[0]


def test_prepares_what_needs_no_download(tmp_path: pathlib.Path) -> None:
    assert sorted(read(NAME, tmp_path)) == sorted(tiny.TRAIN)
    assert list(tmp_path.rglob("*.array_record-*"))


def test_no_network(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple, timeout: float) -> socket.socket:
        assert address == ("example.org", 443) and timeout <= 5
        raise TimeoutError

    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(tiny.TinyTextForTests, "url_infos", {"https://example.org/data.zip": None})
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(DataError, match=r"tiny_text_for_tests.*no network.*config.data.tfds_dir") as caught:
        read(NAME, tmp_path)
    assert str(tmp_path) in str(caught.value) and "example.org" in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")  # behind a proxy the probe is inconclusive
    assert len(read(NAME, tmp_path)) == 20


class Socket:
    closed = 0

    def close(self) -> None:
        Socket.closed += 1


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("urls", "address"),
    [
        (
            ["by hand/data.zip", "https://a.org/x", "https://b.org/y"],
            ("a.org", 443),
        ),  # a path has no host; one host is enough
        (["http://a.org/x"], ("a.org", 80)),
        (["http://a.org:8080/x"], ("a.org", 8080)),
        (["by hand/data.zip"], None),
        (None, None),
    ],
)
def test_the_host_that_is_probed(
    urls: list[str] | None, address: tuple[str, int] | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports are those of RFC 9110, section 4.2, unless the address has one."""
    probed: list[tuple[object, ...]] = []

    def connect(*given: object, timeout: float) -> Socket:
        probed.append(given)
        if not answers:
            raise TimeoutError
        return Socket()

    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(Socket, "closed", 0)
    builder = types.SimpleNamespace(url_infos=urls)
    assert tfds_source._unreachable_host(builder) == ("" if answers or not address else address[0])
    assert probed == ([(address,)] if address else []) and Socket.closed == (answers and bool(address))
    for proxy in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        with monkeypatch.context() as behind:
            behind.setenv(proxy, "http://proxy:1")
            assert tfds_source._unreachable_host(builder) == ""


def test_failed_preparation(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, **_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(tiny.TinyTextForTests, "download_and_prepare", fail)
    with pytest.raises(DataError, match="preparing it failed: disk is full"):
        read(NAME, tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 500), "x" * 500),
        (ValueError("x" * 501), "x" * 500 + " ..."),
        (
            ModuleNotFoundError("No module named 'mwxml'", name="mwxml"),
            "its builder needs the Python package mwxml, which lm_research does not install.",
        ),
    ],
)
def test_words_of_an_error(error: Exception, words: str) -> None:
    assert tfds_source._first_words(error) == words


def test_what_is_not_a_file_is_named(tmp_path: pathlib.Path) -> None:
    """Opening a pipe in place of a shard, or of its metadata, would block."""
    tfds.builder(NAME[5:], data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    shard = next(tmp_path.rglob("*train*array_record*"))
    for path in (shard, shard.with_name("dataset_info.json")):
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(DataError, match=f"{path.name} is a named pipe"):
            read(NAME, tmp_path)
        path.unlink()
        path.write_bytes(content)
    assert read(NAME, tmp_path)
    for name in ("n" * 300, "a\0b", "~no_such_user_here/a"):
        with pytest.raises(DataError, match="config.data.tfds_dir"):
            read(NAME, pathlib.Path(name))


def test_format_that_needs_tensorflow(prepared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tiny_text_for_tests/1.0.0/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="tfrecord.*Delete that folder"):
        read(NAME, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:imdb_review", "Did you mean 'imdb_reviews'"),
        ("tfds:qqqqqqqqqqq", "not a TFDS data set.*catalog"),
        (f"{NAME}@trian", "no split 'trian'. Did you mean 'train'"),
        (f"{NAME}/nope", "cannot open.*nope"),
        (f"{NAME}:9.9.9", "9.9.9.*only: 1.0.0"),
        ("tfds:", "cannot open"),
    ],
)
def test_errors(source: str, message: str, prepared: pathlib.Path) -> None:
    with pytest.raises(DataError, match=message):
        read(source, prepared)
