"""Stores in a bucket: blocks of tokens are fetched when they are first read, and what is read is what a store on a disk has."""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from helpers.clouds import served
from lm_research.common import buckets
from lm_research.common.paths import as_path
from lm_research.data import remote_cache
from lm_research.data import store as store_lib
from lm_research.data.block_tokens import BlockTokens
from lm_research.data.store import TokenStore, write_store
from lm_research.data.verify import Verification
from lm_research.errors import DamagedStore, UserError
from lm_research.objectives.causal_lm import PackedRows

BLOCK = 64  # bytes: 32 tokens
TOKENS = np.random.default_rng(0).integers(0, 1000, 333)  # 10 blocks and 13 tokens


class Remote:
    """A corpus with a store of two sources, in a bucket. `opened` is a copy on another machine, `ranges` is what has been read of its tokens."""

    def __init__(self, server: Any, address: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.address, self.monkeypatch = server, address, monkeypatch
        documents = [[TOKENS[i : i + 9]] for i in range(0, len(TOKENS), 9)]
        monkeypatch.setattr(store_lib, "BLOCK", BLOCK)
        pieces = [store_lib._piece(one)._replace(source=int(i >= 20)) for i, one in enumerate(documents)]
        names = [{"name": "a"}, {"name": "b"}]
        self.local = store_lib.assemble_store(folder / "corpus/train", pieces, "abc", 1000, sources=names)
        remote_cache._upload(folder / "corpus", address)
        monkeypatch.setenv("LM_RESEARCH_CACHE", str(folder / "cache"))
        self.opened = TokenStore.open(remote_cache.local_folder(address) / "train")
        self.ranges: list[tuple[int, int]] = []
        read = buckets.read_ranges

        def record(path: Any, ranges: list[tuple[int, int]]) -> list[bytes]:
            self.ranges += ranges
            return read(path, ranges)

        monkeypatch.setattr(buckets, "read_ranges", record)

    @property
    def object(self) -> pathlib.Path:
        return as_path(f"{self.address}/train/tokens.bin")


@pytest.fixture(params=["gs", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    with served(request.param) as server:
        yield Remote(server, f"{request.param}://bucket/corpus", tmp_path, monkeypatch)


def test_rows_of_one_block_fetch_one_block(remote: Remote) -> None:
    assert isinstance(remote.opened.tokens, BlockTokens) and remote.ranges == []
    assert remote.opened.tokens[35:60].tolist() == TOKENS[35:60].tolist()
    assert remote.opened.document_tokens(4).tolist() == TOKENS[36:45].tolist()
    assert remote.ranges == [(64, 128)]
    here = np.fromfile(remote.opened.path / "tokens.bin", "<u2")
    assert here[32:64].tolist() == TOKENS[32:64].tolist()
    assert len(here) == len(TOKENS) and not here[:32].any() and not here[64:].any()


def test_a_later_process_reads_what_is_here(remote: Remote) -> None:
    assert remote.opened.tokens[300:].tolist() == TOKENS[300:].tolist()
    assert remote.ranges == [(576, 640), (640, 666)]
    buckets.write(remote.object, b"")
    assert TokenStore.open(remote.opened.path).tokens[-40:].tolist()[7:] == TOKENS[300:].tolist()
    assert remote.ranges[2:] == []


@pytest.mark.parametrize("source", [None, "a", "b"])
def test_every_index_reads_what_an_array_does(source: str | None, remote: Remote) -> None:
    opened, local = (store.source(source) if source else store for store in (remote.opened, remote.local))
    assert len(opened.tokens) == len(local.tokens) and opened.tokens.dtype == local.tokens.dtype
    size = len(local.tokens)
    for index in (
        np.array([[0, -1], [40, 99]]),
        5,
        np.int64(-2),
        slice(60, 10, -7),
        slice(3, 3),
        np.zeros(0, int),
        np.arange(size) % 50 == 3,
        slice(None),
    ):
        assert np.array_equal(opened.tokens[index], local.tokens[index]), index
    assert np.array_equal(np.asarray(opened.tokens), local.tokens)
    with pytest.raises(IndexError):
        opened.tokens[np.array([size])]
    if source:
        starts = {None: 0, "a": 0, "b": 180}
        assert min(remote.ranges)[0] <= 2 * starts[source]
        assert max(remote.ranges)[0] < 2 * (starts[source] + size)


def test_batches_are_those_of_a_store_on_a_disk(remote: Remote) -> None:
    remote.server.faults.share = 0.2 if remote.address.startswith("gs") else 0.0
    ours, theirs = (PackedRows(store, 8, 1, 0, "train") for store in (remote.opened, remote.local))
    for epoch in range(3):
        index_B = np.array([5, 0, 31, 17])
        expected = theirs.batch(np.full(4, epoch), index_B)
        for name, found in ours.batch(np.full(4, epoch), index_B).items():
            assert np.array_equal(found, expected[name]), name


@pytest.mark.parametrize("change", ["replaced", "shortened", "removed"])
def test_a_store_that_changes_in_the_bucket_is_not_mixed_with_another(change: str, remote: Remote) -> None:
    assert remote.opened.tokens[0] == TOKENS[0]
    if change == "removed":
        remote.object.unlink()
    else:
        data = bytearray(buckets.read(remote.object))
        data[200] ^= 1
        buckets.write(remote.object, bytes(data) if change == "replaced" else bytes(data[:192]))
    assert remote.opened.tokens[31] == TOKENS[31]  # fetched before
    with pytest.raises(
        DamagedStore,
        match=f"{remote.object} is not what it was.* bytes 192 to 256 have changed or are gone.* Delete that",
    ) as raised:
        remote.opened.tokens[96:100]
    assert not np.fromfile(remote.opened.path / "tokens.bin", "<u2")[32:].any()
    assert raised.value.folder == remote.opened.path.parent and len(str(raised.value)) < 500 + len(
        str(raised.value.folder)
    )


def test_a_block_that_a_killed_process_left_incomplete_is_fetched_again(remote: Remote) -> None:
    with open(remote.opened.path / "tokens.bin", "r+b") as file:
        file.write(TOKENS[:20].astype("<u2").tobytes())
    assert remote.opened.tokens[:].tolist() == TOKENS.tolist()
    assert (remote.opened.path / "tokens.bin").read_bytes() == buckets.read(remote.object)


def test_several_readers_of_one_copy(remote: Remote) -> None:
    stores = [TokenStore.open(remote.opened.path) for _ in range(3)]
    orders = [np.random.default_rng(i).permutation(len(TOKENS)).reshape(-1, 9) for i in range(6)]

    def check(i: int) -> bool:
        return all(np.array_equal(stores[i % 3].tokens[places], TOKENS[places]) for places in orders[i])

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, range(6)))


def test_only_full_verification_fetches_everything(remote: Remote) -> None:
    for mode in ("off", "auto"):
        Verification([remote.opened], mode, lambda line: None)
    assert remote.ranges == []
    Verification([remote.opened], "full", lambda line: None)
    assert len(remote.ranges) == 11


def test_a_bucket_that_cannot_be_read_any_more_is_told(remote: Remote) -> None:
    remote.server.denied.update({"bucket", "GET"})
    with pytest.raises(UserError, match=f"{remote.object} cannot be used: permission denied"):
        remote.opened.tokens[0]


def test_a_store_of_an_earlier_version_is_fetched_as_a_whole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / "cache"))
    made = write_store(tmp_path / "corpus/train", [[[1, 2, 3]]], "abc", 10)
    manifest = made.path / store_lib.MANIFEST
    manifest.write_text(manifest.read_text().replace('"blocks"', '"other"'))
    with served("gs"):
        remote_cache._upload(tmp_path / "corpus", "gs://bucket/corpus")
        opened = TokenStore.open(remote_cache.local_folder("gs://bucket/corpus") / "train")
    assert isinstance(opened.tokens, np.memmap) and opened.tokens.tolist() == [1, 2, 3]
