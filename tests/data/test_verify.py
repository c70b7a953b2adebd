"""Damage to token stores: found by digests and by what ids and tables can be, in the foreground or in the background."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import pickle
import threading

import numpy as np
import pytest

from lm_research.data import store as store_lib
from lm_research.data import verify
from lm_research.data.sampler import BatchBuilder, Examples
from lm_research.data.store import TokenStore, write_store
from lm_research.data.verify import Verification, check_files
from lm_research.errors import DamagedStore

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 5]], [[1], [2], [99]]]


@pytest.fixture
def made(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    """A store in blocks of 8 bytes, so that its tokens are 3 of them."""
    monkeypatch.setattr(store_lib, "BLOCK", 8)
    return write_store(tmp_path / "store", DOCUMENTS, "abc", 100)


def check(made: TokenStore, mode: str = "auto") -> list[str]:
    """The problems reported for a store as it is on disk now."""
    told: list[str] = []
    Verification([TokenStore.open(made.path)], mode, told.append)
    return told


def edit(made: TokenStore, **changes: object) -> None:
    """Change keys of the manifest; None removes one."""
    path = made.path / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_digests_are_sha256_of_the_blocks_of_each_file(made: TokenStore) -> None:
    blocks = made.manifest["blocks"]
    assert blocks["bytes"] == 8 and set(blocks["sha256"]) == set(made.manifest["files"])
    for name, digests in blocks["sha256"].items():
        data = (made.path / name).read_bytes()
        assert digests == [hashlib.sha256(data[i : i + 8]).hexdigest() for i in range(0, len(data), 8)]
    assert len(blocks["sha256"]["tokens.bin"]) == 3  # 9 tokens of 2 bytes
    assert all(check(made, mode) == [] for mode in ("auto", "full", "off"))


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.npy", "documents.npy", "counts.npy"])
@pytest.mark.parametrize("old", [False, True])
def test_any_flipped_bit_is_found(made: TokenStore, name: str, old: bool) -> None:
    if old:
        edit(made, blocks=None)
    path = made.path / name
    data = path.read_bytes()
    first = 0 if name == "tokens.bin" else len(data) - 8 * len(np.load(path))  # after NumPy's header
    for place in np.linspace(first, len(data) - 1, 9).astype(int):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(DamagedStore, match=name) as caught:
            check(made)
        assert "python -m lm_research.prepare" in str(caught.value) and f"Delete the folder {made.path.parent}" in str(
            caught.value
        )
        assert caught.value.folder == made.path.parent
    path.write_bytes(data)
    assert bool(check(made)) == old  # reports once that there are no digests of blocks


def test_off_reads_no_content(made: TokenStore) -> None:
    data = bytearray((made.path / "tokens.bin").read_bytes())
    data[0] ^= 1
    (made.path / "tokens.bin").write_bytes(data)
    assert check(made, "off") == []
    with pytest.raises(DamagedStore, match="tokens.bin has changed since it was written, within bytes 0 to 8"):
        check(made)


def with_digests(made: TokenStore, name: str, data: bytes) -> None:
    """Write a file, and a manifest that matches it."""
    (made.path / name).write_bytes(data)
    blocks = made.manifest["blocks"]
    parts = [hashlib.sha256(data[i : i + 8]).hexdigest() for i in range(0, len(data), 8)]
    edit(made, blocks={**blocks, "sha256": {**blocks["sha256"], name: parts}})


def test_ids_outside_of_the_vocabulary(made: TokenStore) -> None:
    ids = made.tokens.copy()
    ids[7] = 100
    with_digests(made, "tokens.bin", ids.tobytes())
    for mode in ("auto", "full", "off"):
        with pytest.raises(
            DamagedStore, match="tokens.bin has id 100 at token 7, but the vocabulary has 100 ids"
        ) as caught:
            check(made, mode)
    again = pickle.loads(pickle.dumps(caught.value))  # as from a worker process
    assert (str(again), again.folder) == (str(caught.value), made.path.parent)


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize(("name", "entry", "value"), [("sentences", 2, 99), ("documents", 1, 0), ("sentences", 0, -1)])
def test_tables_that_are_not_an_index(made: TokenStore, name: str, entry: int, value: int, mode: str) -> None:
    path = made.path / f"{name}.npy"
    table = np.load(path)
    header = path.read_bytes()[: -table.nbytes]
    table[entry] = value
    with_digests(made, f"{name}.npy", header + table.tobytes())
    with pytest.raises(DamagedStore, match=f"{name}.npy is not an index"):
        check(made, mode)


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": {"bytes": 0, "sha256": {}}},
        {"blocks": {"bytes": 8, "sha256": {"tokens.bin": []}}},
        {"blocks": {"bytes": "x", "sha256": 3}},
        {"num_tokens": "9"},
        {"files": 3},
        {"files": {"tokens.bin": "18"}},
        {"dtype": "float64"},
        {"vocab_size": 50},
    ],
    ids=str,
)
def test_damaged_manifests(made: TokenStore, changes: dict) -> None:
    edit(made, **changes)
    with pytest.raises(DamagedStore, match="damaged"):
        check(made)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store counts as large; nothing of it is read at the start."""
    monkeypatch.setattr(verify, "WHOLE", 0)
    monkeypatch.setattr(verify, "SAMPLE", 0)


@pytest.mark.parametrize("old", [False, True])
def test_large_stores_are_read_in_the_background(
    made: TokenStore, large: None, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        edit(made, blocks=None)
    go, do = threading.Event(), verify._do
    monkeypatch.setattr(verify, "_do", lambda work: (not work or go.wait(), do(work)))
    for flipped in (False, True):
        data = bytearray((made.path / "tokens.bin").read_bytes())
        data[-1] ^= flipped
        (made.path / "tokens.bin").write_bytes(data)
        go.clear()
        found = Verification([TokenStore.open(made.path)], "auto", lambda line: None)
        assert found.background and found.pending and found.damage is None
        go.set()
        found.wait()
        assert not found.pending and (found.damage is not None) == flipped
    with pytest.raises(DamagedStore):  # full waits for all of it
        Verification([TokenStore.open(made.path)], "full", lambda line: None)


def test_a_sample_is_read_first(made: TokenStore, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE", 10**6)
    (made.path / "tokens.bin").write_bytes(bytes(18))
    with pytest.raises(DamagedStore):
        check(made)


class Rows(Examples):
    """Examples whose tokens are their numbers."""

    num_examples = 8

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens_BL": index_B[:, None] + 3, "labels_B": index_B + 100}


def test_a_batch_with_ids_that_the_model_lacks(tmp_path: pathlib.Path) -> None:
    def feed(size):
        return BatchBuilder(Rows(), 8, 0, slice(None), None, vocab_size=size, store=tmp_path / "train")(0)

    assert feed(11)["tokens_BL"].max() == 10
    with pytest.raises(DamagedStore, match="train is damaged: tokens.bin has id 10 .* the model has 10"):
        feed(10)


def test_files_next_to_stores(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    check_files(tmp_path, {"a.json": hashlib.sha256(b"[]").hexdigest()})
    os.mkfifo(tmp_path / "pipe")
    for digests in ({"a.json": "0"}, {"b.json": "0"}, {"pipe": "0"}):
        with pytest.raises(DamagedStore, match=f"The file {tmp_path}/{next(iter(digests))} is damaged"):
            check_files(tmp_path, digests)
