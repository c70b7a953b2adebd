"""Tokens of a store in a bucket, read in place: a block of tokens.bin is fetched when one of its tokens is first read.

The local tokens.bin has its full size from the start, and no content where nothing has been fetched. A block is there if it has the digest
that the manifest lists for it, which each process checks before it first reads the block. So nothing that a killed process, or another
one that fetches at the same time, has left is mistaken for it; two that fetch the same block write the same bytes.
"""

from __future__ import annotations

import hashlib
import pathlib
import threading
from typing import Any

import numpy as np

from lm_research.common import buckets
from lm_research.common.disk import reporting_disk_errors, with_filename
from lm_research.errors import DamagedStore, DataError

ADDRESS = "tokens.address"  # a file next to tokens.bin, with the address of the object that its blocks are fetched from
_AT_ONCE = 2**27  # bytes of blocks that are fetched together, and held in memory


class BlockTokens:
    """A read-only array of tokens, uint16 or uint32 [T], as far as it has been read. Indexing fetches what it needs.

    Attributes:
      path: the local tokens.bin.
      dtype: integer type of the tokens.
    """

    def __init__(self, path: pathlib.Path, dtype: np.dtype[Any], size: int, digests: list[str]) -> None:
        """Map the local file; nothing is fetched.

        Args:
          path: the local tokens.bin, next to a file ADDRESS.
          dtype: integer type of the tokens.
          size: bytes of a block.
          digests: SHA-256 of each block, hexadecimal.
        """
        self.path, self.dtype = path, dtype
        self._address = path.with_name(ADDRESS).read_text(encoding="utf-8").strip()
        self._size, self._digests = size, digests
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._tokens: np.ndarray[Any, Any] = self._bytes.view(dtype)
        self._first = 0  # number of the first token of a part in the file
        self._ready = np.zeros(len(digests), bool)  # blocks that this process has checked
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return tokens as NumPy's indexing does, after fetching the blocks that lack.

        Raises:
          DamagedStore: the object in the bucket has changed since the store was opened, or is gone.
          DiskError: the bucket cannot be read, or the local file cannot be written.
        """
        if not self._ready.all():
            self._fetch(self._blocks_of(key))
        found: np.ndarray = self._tokens[key]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all tokens."""
        return np.array(self[:], dtype, copy=copy)

    def fetch(self) -> None:
        """Fetch everything."""
        len(self[:])

    def part(self, first: int, last: int) -> BlockTokens:
        """Return tokens first, ..., last - 1, of which nothing is fetched yet."""
        return _Part(self, first, last)

    def _blocks_of(self, key: Any) -> np.ndarray:
        """Return the numbers of the blocks that an index reads and that are not ready."""
        per_block = self._size // self.dtype.itemsize
        if isinstance(key, slice):
            read = range(len(self))[key]
            ends = sorted((self._first + place) // per_block for place in (read[0], read[-1])) if read else (0, -1)
            blocks = np.arange(ends[0], ends[1] + 1)
        else:
            place = np.asarray(key)
            place = np.flatnonzero(place) if place.dtype == bool else place
            blocks = (self._first + np.where(place < 0, place + len(self), place)) // per_block
        return np.unique(blocks[~self._ready[blocks]])

    def _fetch(self, blocks: np.ndarray) -> None:
        count = max(1, _AT_ONCE // self._size)
        for start in range(0, len(blocks), count):
            group = blocks[start : start + count]
            with self._lock:
                missing = [block for block in group.tolist() if not self._ready[block] and not self._is_here(block)]
                self._write(missing, self._download(missing))
                self._ready[group] = True

    def _is_here(self, block: int) -> bool:
        return hashlib.sha256(self._bytes[slice(*self._range(block))].data).hexdigest() == self._digests[block]

    def _range(self, block: int) -> tuple[int, int]:
        return block * self._size, min((block + 1) * self._size, len(self._bytes))

    def _download(self, blocks: list[int]) -> list[bytes]:
        """Read blocks of the object, which must have their digests."""
        address = buckets.remote_path(self._address, error=DataError)
        with reporting_disk_errors(lambda: "", address):
            try:
                contents = buckets.read_ranges(address, [self._range(block) for block in blocks])
            except Exception as error:
                if not isinstance(error, FileNotFoundError) and buckets.status_of(error) not in (404, 416):
                    raise
                raise self._changed(blocks[0]) from error
        for block, content in zip(blocks, contents, strict=True):
            if hashlib.sha256(content).hexdigest() != self._digests[block]:
                raise self._changed(block)
        return contents

    def _changed(self, block: int) -> DamagedStore:
        first, last = self._range(block)
        folder = self.path.parent.parent
        return DamagedStore(
            f"{self._address} is not what it was when {folder} was made from it: bytes {first:,} to {last:,} have changed or are gone. None of "
            "them was used. Delete that folder, on every machine, and the same command begins with the store that is there now. If "
            f"that one is damaged, delete {self._address.rpartition('/')[0].rpartition('/')[0]} too; the next run builds it again.",
            folder,
        )

    def _write(self, blocks: list[int], contents: list[bytes]) -> None:
        if not blocks:
            return
        with reporting_disk_errors(lambda: "", self.path), with_filename(self.path), open(self.path, "r+b") as file:
            for block, content in zip(blocks, contents, strict=True):
                file.seek(self._range(block)[0])
                file.write(content)


class _Part(BlockTokens):
    """Consecutive tokens of another array, with which it shares the lock and what has been fetched."""

    def __init__(self, whole: BlockTokens, first: int, last: int) -> None:
        vars(self).update(vars(whole))
        self._tokens, self._first = self._tokens[first:last], self._first + first
