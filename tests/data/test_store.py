"""The token store: round trip, exact files, kill-safety, damage."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest

from lm_research.data import store as store_module
from lm_research.data.store import TokenStore, write_store
from lm_research.errors import DataError

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 5]], [[1], [2], [65535]]]


def test_round_trip(tmp_path: pathlib.Path) -> None:
    written = write_store(tmp_path / "store", iter(DOCUMENTS), "abc", 2**16, part="train", text_bytes=lambda: 42)
    store = TokenStore.open(tmp_path / "store")
    assert store.tokens.tolist() == [5, 6, 7, 8, 9, 5, 1, 2, 65535]
    assert store.sentence_starts.tolist() == [0, 3, 4, 6, 7, 8, 9]
    assert store.document_starts.tolist() == [0, 2, 3, 6]
    assert [store.document_tokens(i).tolist() for i in range(3)] == [[5, 6, 7, 8], [9, 5], [1, 2, 65535]]
    assert (store.num_tokens, store.num_sentences, store.num_documents) == (9, 6, 3)
    assert np.array_equal(store.token_counts, np.bincount(store.tokens, minlength=2**16))
    assert store.sentence_starts.dtype == store.document_starts.dtype == store.token_counts.dtype == np.int64
    assert store.manifest["part"] == "train" and store.manifest["text_bytes"] == 42
    assert store.manifest["tokenizer_digest"] == "abc"
    assert store.digest == written.digest
    text = (tmp_path / "store/manifest.json").read_text()
    assert text == json.dumps(store.manifest, indent=2) + "\n"  # people read it
    assert isinstance(store.tokens, np.memmap) and not store.tokens.flags.writeable


@pytest.mark.parametrize(("vocab_size", "width"), [(2**16, 2), (2**16 + 1, 4)])
def test_tokens_are_little_endian_and_as_narrow_as_the_vocabulary_allows(
    vocab_size: int, width: int, tmp_path: pathlib.Path
) -> None:
    write_store(tmp_path / "store", [[[1, 258]]], "abc", vocab_size)
    expected = b"\x01\x00\x02\x01" if width == 2 else b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert (tmp_path / "store/tokens.bin").read_bytes() == expected


def test_digest_depends_on_content_and_boundaries(tmp_path: pathlib.Path) -> None:
    def digest(name: str, documents: list, **extra: object) -> str:
        return write_store(tmp_path / name, documents, "abc", 100, **extra).digest

    base = digest("a", [[[1, 2], [3]]])
    assert digest("b", [[[1, 2], [3]]], note="other") == base
    assert len({base, digest("c", [[[1], [2, 3]]]), digest("d", [[[1, 2]], [[3]]]), digest("e", [[[1, 2], [4]]])}) == 4


def test_small_pieces_of_one_source_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they hold more than five tokens; empty ones are left out, and sources are kept apart."""
    monkeypatch.setattr(store_module, "_PIECE_TOKENS", 5)

    def piece(tokens: str, source: int) -> store_module.Piece:
        numbers = np.array([int(token) for token in tokens], np.int64)
        return store_module.Piece(
            numbers, np.array([len(numbers)] if tokens else [], int), np.ones(min(1, len(tokens)), int), source
        )

    given = [piece("12", 0), piece("", 0), piece("345", 0), piece("6", 0), piece("7", 0), piece("8", 1), piece("9", 1)]
    found = [
        ("".join(map(str, one.tokens)), one.sentence_lengths.tolist(), one.source)
        for one in store_module._joined(given)
    ]
    assert found == [("123456", [2, 3, 1], 0), ("7", [1], 0), ("89", [1, 1], 1)]


def test_killed_build_leaves_nothing_that_looks_complete(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, sys, pathlib; from lm_research.data.store import write_store\n"
        "def documents():\n"
        "    yield [[1, 2]]\n"
        "    os.kill(os.getpid(), 9)\n"
        "write_store(pathlib.Path(sys.argv[1]), documents(), 'abc', 100)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")])
    assert killed.returncode == -9
    assert [path.name.endswith(".tmp") for path in tmp_path.iterdir()] == [
        True
    ]  # a leftover that does not have a store's name
    with pytest.raises(DataError, match="does not exist"):
        TokenStore.open(tmp_path / "store")
    assert write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16).num_tokens == 9


def test_failing_documents_leave_nothing(tmp_path: pathlib.Path) -> None:
    def documents():
        yield [[1]]
        raise DataError("unreadable")

    with pytest.raises(DataError, match="unreadable"):
        write_store(tmp_path / "store", documents(), "abc", 100)
    assert list(tmp_path.iterdir()) == []


def test_two_builders_at_once(tmp_path: pathlib.Path) -> None:
    meet = threading.Barrier(2)
    stores = []

    def build() -> None:
        def documents():
            meet.wait()
            yield from DOCUMENTS

        stores.append(write_store(tmp_path / "store", documents(), "abc", 2**16))

    threads = [threading.Thread(target=build) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(stores) == 2 and stores[0].digest == stores[1].digest
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_other_content_is_refused(tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", [[[1]]], "abc", 100)
    with pytest.raises(DataError, match="another token store"):
        write_store(tmp_path / "store", [[[2]]], "abc", 100)
    assert TokenStore.open(tmp_path / "store").tokens.tolist() == [1]


def test_no_documents(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no document"):
        write_store(tmp_path / "store", [], "abc", 100)


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.npy", "documents.npy", "counts.npy"])
@pytest.mark.parametrize("how", ["missing", "short"])
def test_damaged_files(name: str, how: str, tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    path = tmp_path / "store" / name
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name}.*Delete"):
        TokenStore.open(tmp_path / "store")


def test_damaged_insides(tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    header_broken = tmp_path / "store/sentences.npy"
    content = header_broken.read_bytes()
    header_broken.write_bytes(b"X" * len(content))
    with pytest.raises(DataError, match="damaged"):
        TokenStore.open(tmp_path / "store")
    header_broken.write_bytes(content[:-8] + (10).to_bytes(8, "little"))
    with pytest.raises(DataError, match="tables end"):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("manifest", "message"), [(None, "no manifest.json"), ("{", "not JSON"), ("[]", "lacks keys"), ("{}", "lacks keys")]
)
def test_damaged_manifest(manifest: str | None, message: str, tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    path = tmp_path / "store/manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    with pytest.raises(DataError, match=f"{message}.*Delete the folder"):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize("name", ["tokens.bin", "manifest.json"])
def test_pipes_do_not_block(name: str, tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    (tmp_path / "store" / name).unlink()
    os.mkfifo(tmp_path / "store" / name)
    with pytest.raises(DataError, match=f"damaged: {tmp_path}/store/{name} is a named pipe"):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize("reader", ["numpy.memmap", "numpy.load", "pathlib.Path.read_bytes"])
@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), OSError(errno.EMFILE, "no")])
def test_unreadable_is_not_damaged(
    reader: str, error: OSError, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing permission must not lead to advice to delete the store."""
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    monkeypatch.setattr(reader, mock.Mock(side_effect=error))
    with pytest.raises(type(error)):
        TokenStore.open(tmp_path / "store")


def test_other_format(tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16)
    path = tmp_path / "store/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        TokenStore.open(tmp_path / "store")


def test_a_store_can_be_moved(tmp_path: pathlib.Path) -> None:
    digest = write_store(tmp_path / "store", DOCUMENTS, "abc", 2**16).digest
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    assert TokenStore.open(tmp_path / "elsewhere").digest == digest
