"""Whether the stores of a run are what was written (data.verify): digests of their blocks, and the range of their ids.

Small stores are read whole before the run begins. Of large ones some blocks are, chosen anew at each start, and a thread reads the
others while the run trains. A store of an earlier version, without digests of blocks, has one of all its content, which takes their place.
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
from lm_research.common.rounding import ceil_div
from lm_research.data.store import DamagedStore, TokenStore, damaged, of_the_machine
from lm_research.errors import UserError

WHOLE = 2**30  # bytes of all stores of a run up to which auto reads them whole
SAMPLE = 16  # blocks that it reads of larger ones before the run begins
_TABLES = ("sentences", "documents")
_OF_DAMAGE = (IndexError, ValueError, OverflowError, MemoryError)  # what NumPy says of offsets that are none
_ROWS = 2**20  # entries of a table looked at at once


class Block(NamedTuple):
    """Some bytes of a file of a store: digests[number] is theirs."""

    store: TokenStore
    name: str
    number: int
    size: int
    digest: str


class Verification:
    """The check of a run's stores.

    Attributes:
      background: whether a thread has, or had, a part of the work.
    """

    def __init__(self, stores: Sequence[TokenStore], mode: str, log: Callable[[str], None]) -> None:
        """Does what is to be done before the run begins.

        Args:
          stores: those that the run reads.
          mode: data.verify.
          log: told of stores that have no digests of blocks.

        Raises:
          DamagedStore: something is not what was written.
        """
        self._stores = stores
        size = sum(sum(store.manifest["files"].values()) for store in stores)
        self.background = mode == "auto" and size > WHOLE
        self._damage: DamagedStore | None = None
        self._ended = threading.Event()
        for store in stores if size <= WHOLE else ():
            check_tables(store)
            check_ids(store, store.tokens, 0)
        if mode == "off":
            return
        old = [store for store in stores if not _has_blocks(store)]
        if old:
            log(
                f"data.verify: {' and '.join(str(store.path) for store in old)} of an earlier version has no digests of blocks; it is "
                "checked by the one of all its content."
            )
        work: list[Callable[[], None]] = [
            functools.partial(check_block, block) for store in stores for block in _blocks(store)
        ]
        if self.background:
            random.shuffle(work)  # and not by the run's seed: each start looks at others
            _do(work[:SAMPLE])
            rest = [*work[SAMPLE:], *(functools.partial(check_whole, store) for store in old)]
            threading.Thread(target=self._go_on, args=(rest,), daemon=True, name="data.verify").start()
        else:
            _do([*work, *(functools.partial(check_whole, store) for store in old)])

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Of an error that offsets or ids out of range may have caused, before they were looked at, looks for them.

        Raises:
          DamagedStore: it has found some, which takes the place of the error.
        """
        if isinstance(error, _OF_DAMAGE) and not isinstance(error, UserError):
            for store in self._stores:
                check_tables(store)
                check_ids(store, store.tokens, 0)

    @property
    def pending(self) -> bool:
        """Whether there is something that has not been read yet."""
        return self.background and not self._ended.is_set()

    @property
    def damage(self) -> DamagedStore | None:
        """What the thread has found."""
        return self._damage

    def wait(self) -> None:
        """Returns when all has been read."""
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


def _has_blocks(store: TokenStore) -> bool:
    return isinstance(store.manifest.get("blocks"), dict)


def _blocks(store: TokenStore) -> list[Block]:
    """The blocks of a store's files; none of one that has no digests of them."""
    if not _has_blocks(store):
        return []
    try:
        size, digests = int(store.manifest["blocks"]["bytes"]), dict(store.manifest["blocks"]["sha256"])
        counts = {name: ceil_div(total, size) for name, total in store.manifest["files"].items()}
        if {name: len(each) for name, each in digests.items()} != counts:
            raise ValueError("not one for each block")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise damaged(store.path, f"the digests in its manifest.json are none ({error})") from error
    return [
        Block(store, name, number, size, digest) for name, each in digests.items() for number, digest in enumerate(each)
    ]


def check_block(block: Block) -> None:
    """Raises a DamagedStore unless the block is what was written, with ids of the vocabulary."""
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
            f"{block.name} is not what was written, somewhere in its bytes {first:,} to {first + len(data):,}",
        )
    if block.name == "tokens.bin":
        check_ids(store, np.frombuffer(data, store.tokens.dtype), first // store.tokens.dtype.itemsize)


def check_ids(store: TokenStore, ids: np.ndarray, first: int) -> None:
    """Raises a DamagedStore if one of these ids, from number `first` on, is outside of the vocabulary."""
    size = len(store.token_counts)
    if len(ids) and int(ids.max()) >= size:
        place = first + int(ids.argmax())
        raise damaged(
            store.path, f"tokens.bin has id {int(ids.max())} at token {place:,}, and the vocabulary has {size} ids"
        )


def check_tables(store: TokenStore) -> None:
    """Raises a DamagedStore unless the offsets of sentences and documents begin at 0 and rise."""
    for name, table in zip(_TABLES, (store.sentence_starts, store.document_starts), strict=True):
        for start in range(0, len(table), _ROWS):
            part = np.asarray(table[start : start + _ROWS + 1])
            wrong = np.flatnonzero(np.diff(part) <= 0)
            if len(wrong) or int(table[0]) != 0:
                place = start + int(wrong[0]) + 1 if len(wrong) else 0
                raise damaged(store.path, f"{name}.npy is no index: its entry {place:,} is {int(table[place]):,}")


def check_whole(store: TokenStore) -> None:
    """Checks a store without digests of blocks by that of all its content; raises a DamagedStore."""
    check_tables(store)
    digest = hashlib.sha256(store.tokens.dtype.newbyteorder("<").str.encode())
    step = 2**24
    for table in (store.tokens, store.sentence_starts, store.document_starts, store.token_counts):
        for start in range(0, len(table), step):
            part: np.ndarray[Any, Any] = np.asarray(table[start : start + step])
            if table is store.tokens:
                check_ids(store, part, start)
            digest.update(part.tobytes())
    if digest.hexdigest() != store.digest:
        names = "tokens.bin, sentences.npy, documents.npy or counts.npy"
        raise damaged(store.path, f"{names} is not what was written")


def check_files(folder: pathlib.Path, digests: dict[str, str]) -> None:
    """Raises a DamagedStore unless the small files of a corpus are what was written: name -> SHA-256, hexadecimal."""
    for name, digest in digests.items():
        try:
            with open_file(folder / name) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if of_the_machine(error):
                raise
            raise damaged(folder / name, error.strerror or str(error), "file") from error
        if found != digest:
            raise damaged(folder / name, "it is not what was written", "file")
