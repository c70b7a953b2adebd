"""Verification of a run's stores (data.verify): digests of their blocks, and the range of their ids.

Small stores are read completely before the run begins. For large ones some blocks, chosen at random at each start, are read first, and a
thread reads the others during training. A store of an earlier version has one digest of all its content instead of digests of blocks.
The tokens of a store in a bucket are checked, in any mode, as they are fetched (block_tokens.py), and here only if all are to be read.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_research.common.paths import open_file
from lm_research.data.block_tokens import BlockTokens
from lm_research.data.store import TokenStore, block_digests, damaged, has_blocks, is_machine_error
from lm_research.errors import DamagedStore, UserError

WHOLE = 2**30  # up to this many bytes in all stores, data.verify=auto reads everything before the run begins
SAMPLE = 16  # blocks of larger stores that it reads before the run begins
_TABLES = ("sentences", "documents")
_OF_DAMAGE = (IndexError, ValueError, OverflowError, MemoryError)  # NumPy's errors for invalid offsets
_ROWS = 2**20  # entries of a table that are checked at once


class Block(NamedTuple):
    """A block of a file of a store, with its expected digest."""

    store: TokenStore
    name: str
    number: int
    size: int
    digest: str


class Verification:
    """Verifies the stores of a run, partly in a background thread.

    Attributes:
      background: whether a thread reads, or has read, a part of the blocks.
    """

    def __init__(self, stores: Sequence[TokenStore], mode: str, log: Callable[[str], None]) -> None:
        """Run the checks that precede the run, and start the thread for the others.

        Args:
          stores: stores that the run reads.
          mode: data.verify.
          log: called with a line about stores without digests of blocks.

        Raises:
          DamagedStore: a file has changed since it was written.
        """
        self._stores = stores
        size = sum(sum(store.manifest["files"].values()) for store in stores)
        self.background = mode == "auto" and size > WHOLE
        self._damage: DamagedStore | None = None
        self._ended = threading.Event()
        for store in stores if size <= WHOLE else ():
            _check_content(store)
        if mode == "off":
            return
        old = [store for store in stores if not has_blocks(store.manifest)]
        if old:
            log(
                f"data.verify: {' and '.join(str(store.path) for store in old)} from an earlier version has no digests of blocks; the "
                "digest of its whole content is checked instead."
            )
        work: list[Callable[[], None]] = [
            functools.partial(check_block, block) for store in stores for block in _blocks(store)
        ]
        if mode == "full":
            work += [store.tokens.fetch for store in stores if isinstance(store.tokens, BlockTokens)]
        if self.background:
            random.shuffle(work)  # not by the run's seed, so that each start samples different blocks
            _do(work[:SAMPLE])
            rest = [*work[SAMPLE:], *(functools.partial(check_whole, store) for store in old)]
            threading.Thread(target=self._go_on, args=(rest,), daemon=True, name="data.verify").start()
        else:
            _do([*work, *(functools.partial(check_whole, store) for store in old)])

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Check all offsets and ids if the block ends with an error that invalid ones may have caused.

        Raises:
          DamagedStore: an offset or id is invalid; this replaces the error.
        """
        if isinstance(error, _OF_DAMAGE) and not isinstance(error, UserError):
            for store in self._stores:
                _check_content(store)

    @property
    def pending(self) -> bool:
        """Whether the thread has blocks left to read."""
        return self.background and not self._ended.is_set()

    @property
    def damage(self) -> DamagedStore | None:
        """The damage that the thread has found, if any."""
        return self._damage

    def wait(self) -> None:
        """Wait until the thread has read all blocks."""
        if self.background:
            self._ended.wait()

    def _go_on(self, work: Iterable[Callable[[], None]]) -> None:
        try:
            _do(work)
        except DamagedStore as error:
            self._damage = error
        finally:
            self._ended.set()


def _do(work: Iterable[Callable[[], None]]) -> None:
    for one in work:
        one()


def _blocks(store: TokenStore) -> list[Block]:
    """List the blocks of a store's files that are on this machine; empty for a store without digests of blocks."""
    size, digests = block_digests(store.path, store.manifest)
    fetched = isinstance(store.tokens, BlockTokens)
    return [
        Block(store, name, number, size, digest)
        for name, each in digests.items()
        if not (fetched and name == "tokens.bin")
        for number, digest in enumerate(each)
    ]


def _check_content(store: TokenStore) -> None:
    """Raise a DamagedStore if an offset or id is invalid."""
    check_tables(store)
    if not isinstance(store.tokens, BlockTokens):  # whose ids are those that were written
        check_ids(store, store.tokens, 0)


def check_block(block: Block) -> None:
    """Raise a DamagedStore unless the block has its digest and its ids are in the vocabulary."""
    store, first = block.store, block.number * block.size
    try:
        with open(store.path / block.name, "rb") as file:
            file.seek(first)
            data = file.read(block.size)
    except OSError as error:
        raise damaged(store.path, f"{block.name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != block.digest:
        raise damaged(
            store.path,
            f"{block.name} has changed since it was written, within bytes {first:,} to {first + len(data):,}",
        )
    if block.name == "tokens.bin":
        check_ids(store, np.frombuffer(data, store.tokens.dtype), first // store.tokens.dtype.itemsize)


def check_ids(store: TokenStore, ids: np.ndarray, first: int) -> None:
    """Raise a DamagedStore if one of these ids, the first of which has number `first`, is outside of the vocabulary."""
    size = len(store.token_counts)
    if len(ids) and int(ids.max()) >= size:
        place = first + int(ids.argmax())
        raise damaged(
            store.path, f"tokens.bin has id {int(ids.max())} at token {place:,}, but the vocabulary has {size} ids"
        )


def check_tables(store: TokenStore) -> None:
    """Raise a DamagedStore unless the offsets of sentences and documents begin at 0 and increase."""
    for name, table in zip(_TABLES, (store.sentence_starts, store.document_starts), strict=True):
        for start in range(0, len(table), _ROWS):
            part = np.asarray(table[start : start + _ROWS + 1])
            wrong = np.flatnonzero(np.diff(part) <= 0)
            if len(wrong) or int(table[0]) != 0:
                place = start + int(wrong[0]) + 1 if len(wrong) else 0
                raise damaged(store.path, f"{name}.npy is not an index: its entry {place:,} is {int(table[place]):,}")


def check_whole(store: TokenStore) -> None:
    """Raise a DamagedStore unless a store without digests of blocks has the digest of its whole content."""
    check_tables(store)
    digest = hashlib.sha256(store.tokens.dtype.newbyteorder("<").str.encode())
    step, tokens = 2**24, np.asarray(store.tokens)
    for table in (tokens, store.sentence_starts, store.document_starts, store.token_counts):
        for start in range(0, len(table), step):
            part: np.ndarray[Any, Any] = np.asarray(table[start : start + step])
            if table is tokens:
                check_ids(store, part, start)
            digest.update(part.tobytes())
    if digest.hexdigest() != store.digest:
        names = "tokens.bin, sentences.npy, documents.npy or counts.npy"
        raise damaged(store.path, f"{names} has changed since it was written")


def check_files(folder: pathlib.Path, digests: dict[str, str]) -> None:
    """Raise a DamagedStore unless the small files of a corpus have their digests: name -> SHA-256, hexadecimal."""
    for name, digest in digests.items():
        try:
            with open_file(folder / name) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if is_machine_error(error):
                raise
            raise damaged(folder / name, error.strerror or str(error), "file") from error
        if found != digest:
            raise damaged(folder / name, "it has changed since it was written", "file")
