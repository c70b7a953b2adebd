"""Token store: a tokenized corpus in four flat files that are mapped into memory.

    tokens.bin      uint16 or uint32, little endian: the ids of all sentences, one after another
    sentences.npy   int64 [S + 1]: where each sentence starts in tokens.bin, then the end
    documents.npy   int64 [D + 1]: where each document starts in sentences.npy, then the end
    counts.npy      int64 [V]: how often each id occurs, for unigram baselines
    manifest.json   counts, sizes of the files, digests (of everything, and of each file's blocks of 8 MiB) and versions; written last

The store of a mixture has its sources one after another. Its manifest lists the number of documents of each ("sources"), and
source_counts.npy, int64 [sources, V], has the counts of each: see `TokenStore.source`.

Sizes: T tokens, S sentences, D documents, V vocabulary.
"""

from __future__ import annotations

import array
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from lm_research.common.disk import atomic_folder, with_filename
from lm_research.common.documents import json_value
from lm_research.common.paths import odd_file
from lm_research.common.rounding import ceil_div
from lm_research.data.block_tokens import ADDRESS, BlockTokens
from lm_research.errors import DamagedStore, DataError, prepare_again

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 8 * 2**20  # bytes of a file per digest (verify.py), and per request to a bucket (block_tokens.py)
_MACHINE_ERRORS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_PIECE_TOKENS = 1_000_000  # small pieces are joined into pieces of about this size


Tokens = np.ndarray | BlockTokens


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A store on disk. Arrays are read-only views of the files; the tokens of one in a bucket are fetched as they are read.

    Attributes:
      path: folder of the store.
      manifest: content of manifest.json, including extra keys of `write_store`.
      tokens: uint16 or uint32 [T].
      sentence_starts: int64 [S + 1], offsets into tokens.
      document_starts: int64 [D + 1], offsets into sentence_starts.
      token_counts: int64 [V].
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    tokens: Tokens
    sentence_starts: np.ndarray
    document_starts: np.ndarray
    token_counts: np.ndarray

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.manifest["num_tokens"]

    @property
    def num_sentences(self) -> int:
        """S."""
        return self.manifest["num_sentences"]

    @property
    def num_documents(self) -> int:
        """D."""
        return self.manifest["num_documents"]

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the tokens, offsets and counts."""
        return self.manifest["digest"]

    @property
    def source_names(self) -> list[str]:
        """Names of the sources of a mixture, in the order in which they are stored; empty for a plain corpus."""
        return [entry["name"] for entry in self.manifest.get("sources", [])]

    def source(self, name: str) -> TokenStore:
        """Return one source of a mixture as a separate store, with views of the same tokens and its own offsets."""
        names = self.source_names
        place = names.index(name)
        entries = self.manifest["sources"]
        first = sum(entry["num_documents"] for entry in entries[:place])
        last = first + entries[place]["num_documents"]
        sentences = np.asarray(self.document_starts[first : last + 1])
        tokens = np.asarray(self.sentence_starts[sentences[0] : sentences[-1] + 1])
        manifest = {**self.manifest, **entries[place], "num_sentences": len(tokens) - 1, "sources": []}
        counts = np.load(self.path / "source_counts.npy", mmap_mode="r")[place]
        ends = int(tokens[0]), int(tokens[-1])
        inside = self.tokens.part(*ends) if isinstance(self.tokens, BlockTokens) else self.tokens[slice(*ends)]
        return _Source(self.path, manifest, inside, tokens - tokens[0], sentences - sentences[0], counts)

    def document_tokens(self, i: int) -> np.ndarray:
        """Return the ids of document i, in the store's integer type."""
        first, last = self.sentence_starts[self.document_starts[i : i + 2]]
        return self.tokens[first:last]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the path; worker processes map the files instead of receiving their content."""
        return TokenStore.open, (self.path,)

    @classmethod
    def open(cls, path: pathlib.Path | str) -> TokenStore:
        """Map a store into memory, which takes milliseconds for any size.

        Raises:
          DataError: the store is missing or damaged (only sizes and ends of the tables are checked, not every byte).
        """
        path = pathlib.Path(path)
        manifest = read_manifest(path)
        for name, size in manifest["files"].items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise damaged(path, f"{name} {state}")
        try:
            tokens = _open_tokens(path, manifest)
            tables = [np.load(path / f"{name}.npy", mmap_mode="r") for name in ("sentences", "documents", "counts")]
        except DataError:
            raise
        except Exception as error:  # NumPy raises many types for an invalid header
            if is_machine_error(error):
                raise
            raise damaged(path, str(error)) from error
        if any(table.dtype != np.dtype("<i8") or table.ndim != 1 or not len(table) for table in tables):
            raise damaged(path, "one of its tables is not a list of 64-bit integers")
        store = cls(path, manifest, tokens, *tables)
        ends = (int(tables[0][-1]), len(tables[0]) - 1, int(tables[1][-1]), len(tables[1]) - 1)
        expected = (store.num_tokens, store.num_sentences, store.num_sentences, store.num_documents)
        if ends != expected or len(tokens) != store.num_tokens:
            name = "documents.npy" if ends[:2] == expected[:2] and len(tokens) == expected[0] else "sentences.npy"
            raise damaged(path, f"{name}, or {MANIFEST}: its tables end at {ends}, but its manifest has {expected}")
        if manifest.get("vocab_size", len(tables[2])) != len(tables[2]):
            raise damaged(path, f"counts.npy has {len(tables[2])} ids, but {MANIFEST} has {manifest['vocab_size']}")
        return store


class _Source(TokenStore):
    """One source of a store, pickled as the path of the store and the source's name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_source, (self.path, self.manifest["name"])


def _open_source(path: pathlib.Path, name: str) -> TokenStore:
    return TokenStore.open(path).source(name)


def damaged(path: pathlib.Path, what: str, kind: str = "token store") -> DamagedStore:
    """Build the error for a damaged part of a corpus, with instructions to rebuild it."""
    return DamagedStore(
        f"The {kind} {path} is damaged: {what}. Delete the folder {path.parent}; the next run rebuilds it. Or rebuild it now: "
        f"{prepare_again()} moves the damaged folder aside.",
        path.parent,
    )


def is_machine_error(error: Exception) -> bool:
    """Whether an error comes from the machine (permissions, memory, missing modules) and not from a damaged file."""
    return isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno in _MACHINE_ERRORS)


def _open_tokens(path: pathlib.Path, manifest: dict[str, Any]) -> Tokens:
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    if not (path / ADDRESS).is_file():
        return np.memmap(path / "tokens.bin", dtype=dtype, mode="r")
    size, digests = block_digests(path, manifest)
    return BlockTokens(path / "tokens.bin", dtype, size, digests["tokens.bin"])


def has_blocks(manifest: dict[str, Any]) -> bool:
    """Whether a store has digests of blocks, as all have but those of earlier versions."""
    return isinstance(manifest.get("blocks"), dict)


def block_digests(path: pathlib.Path, manifest: dict[str, Any]) -> tuple[int, dict[str, list[str]]]:
    """Return the bytes of a block, and the SHA-256 of each block of each file; none for a store of an earlier version.

    Raises:
      DamagedStore: the manifest does not list one for each block.
    """
    if not has_blocks(manifest):
        return BLOCK, {}
    try:
        size, digests = int(manifest["blocks"]["bytes"]), dict(manifest["blocks"]["sha256"])
        counts = {name: ceil_div(total, size) for name, total in manifest["files"].items()}
        if {name: len(each) for name, each in digests.items()} != counts or size % np.dtype(manifest["dtype"]).itemsize:
            raise ValueError("not one per block")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise damaged(path, f"the digests in its manifest.json are invalid ({error})") from error
    return size, digests


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Read manifest.json, with the keys that every store has; raises a DataError if it is missing or damaged."""
    if odd := odd_file(path):  # opening a pipe would block
        raise damaged(path, odd)
    try:
        manifest = json_value((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        if (path / "tokens.bin").exists():
            raise damaged(path, f"it has no {MANIFEST}") from None
        what = f"it has no {MANIFEST}" if path.is_dir() else "the folder does not exist"
        raise DataError(f"{path} is not a token store: {what}.") from None
    except (ValueError, OSError) as error:
        if is_machine_error(error):
            raise
        raise damaged(path, f"{MANIFEST} is not JSON ({error})") from error
    needed = {"format", "dtype", "files", "num_tokens", "num_sentences", "num_documents", "digest"}
    if not isinstance(manifest, dict) or needed - set(manifest):
        raise damaged(path, f"{MANIFEST} lacks keys")
    counts = [manifest["num_tokens"], manifest["num_sentences"], manifest["num_documents"]]
    sizes = manifest["files"].values() if isinstance(manifest["files"], dict) else [None]
    if not all(type(number) is int for number in [*counts, *sizes]) or manifest["dtype"] not in ("uint16", "uint32"):
        raise damaged(path, f"{MANIFEST} has values of the wrong type")
    if manifest["format"] != FORMAT:
        raise DataError(
            f"The token store {path} has format {manifest['format']}; this version of lm_research reads format "
            f"{FORMAT}. Delete the folder {path.parent}; the next run rebuilds it."
        )
    return manifest


class Piece(NamedTuple):
    """Consecutive documents, as they are stored.

    Attributes:
      tokens: integers [T].
      sentence_lengths: tokens of each sentence, integers [S], all above 0.
      document_lengths: sentences of each document, integers [D], all above 0.
      source: index of their source in the `sources` of `assemble_store`; never decreases.
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    source: int = 0


def write_store(
    path: pathlib.Path,
    documents: Iterable[Sequence[Sequence[int] | np.ndarray]],
    tokenizer_digest: str,
    vocab_size: int,
    **extra: Any,
) -> TokenStore:
    """Write documents as `assemble_store` does; each is a list of sentences, which are non-empty lists of ids. Streams its input."""
    return assemble_store(path, map(_piece, documents), tokenizer_digest, vocab_size, **extra)


def _piece(sentences: Sequence[Sequence[int] | np.ndarray]) -> Piece:
    assert sentences and all(map(len, sentences)), "documents and sentences have tokens"
    tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64)
    return Piece(tokens, np.array([len(sentence) for sentence in sentences]), np.array([len(sentences)]))


def assemble_store(
    path: pathlib.Path,
    pieces: Iterable[Piece],
    tokenizer_digest: str,
    vocab_size: int,
    sources: list[dict[str, Any]] | None = None,
    **extra: Any,
) -> TokenStore:
    """Write a store next to `path` and rename it into place when it is complete.

    A build that is killed leaves nothing at `path`. Two processes may build the same store at once: the first to finish
    wins, and the other uses the winner's store.

    Args:
      path: folder of the store; its parent is created.
      pieces: the documents, in order; read once and not kept.
      tokenizer_digest: digest of the tokenizer that made the ids.
      vocab_size: V; every id is below it.
      sources: entries of the manifest for the sources of a mixture, with at least "name"; their counts are added.
      extra: further keys of the manifest; a function is called without arguments after the last document.

    Raises:
      DataError: there is no document, or a store with other content is at `path`.
    """
    path = pathlib.Path(path)
    with atomic_folder(path) as temporary, with_filename(path):
        digest = _write_files(temporary, pieces, tokenizer_digest, vocab_size, sources, extra)
    store = TokenStore.open(path)
    if store.digest != digest:
        raise DataError(
            f"{path} has another token store (digest {store.digest[:12]}, not {digest[:12]}). Delete that folder, or "
            "build in another one."
        )
    return store


def _write_files(
    path: pathlib.Path,
    pieces: Iterable[Piece],
    tokenizer_digest: str,
    vocab_size: int,
    sources: list[dict[str, Any]] | None,
    extra: dict[str, Any],
) -> str:
    """Write the files of a store and return its digest."""
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    counts = np.zeros((max(1, len(sources or [])), vocab_size), dtype=np.int64)
    documents_of = np.zeros(len(counts), dtype=np.int64)
    sentence_starts, document_starts = array.array("q", [0]), array.array("q", [0])
    digest = hashlib.sha256(dtype.str.encode())
    blocks = {}
    with open(path / "tokens.bin", "wb") as opened:
        file = _DigestingFile(opened)
        for piece in _joined(pieces):
            assert piece.tokens.min() >= 0 and piece.tokens.max() < vocab_size, (piece.tokens.max(), vocab_size)
            _extend(sentence_starts, piece.sentence_lengths)
            _extend(document_starts, piece.document_lengths)
            counts[piece.source] += np.bincount(piece.tokens, minlength=vocab_size)
            documents_of[piece.source] += len(piece.document_lengths)
            data = piece.tokens.astype(dtype).tobytes()
            digest.update(data)
            file.write(data)
        _sync(opened)
        blocks["tokens.bin"] = file.digests()
    if len(document_starts) == 1:
        raise DataError(f"There is no document to store in {path.parent}: the corpus is empty.")
    tables = dict(sentences=np.array(sentence_starts), documents=np.array(document_starts), counts=counts.sum(0))
    for table in tables.values():
        digest.update(table.astype("<i8").tobytes())
    if sources:
        tables["source_counts"] = counts
        numbers = zip(documents_of.tolist(), counts.sum(1).tolist(), strict=True)
        extra["sources"] = [
            {**source, "num_documents": documents, "num_tokens": tokens}
            for source, (documents, tokens) in zip(sources, numbers, strict=True)
        ]
    for name, table in tables.items():
        with open(path / f"{name}.npy", "wb") as opened:
            file = _DigestingFile(opened)
            np.lib.format.write_array(file, table.astype("<i8"), allow_pickle=False)
            _sync(opened)
            blocks[f"{name}.npy"] = file.digests()
    manifest = dict(
        format=FORMAT,
        dtype=dtype.name,
        num_tokens=sentence_starts[-1],
        num_sentences=len(sentence_starts) - 1,
        num_documents=len(document_starts) - 1,
        vocab_size=vocab_size,
        tokenizer_digest=tokenizer_digest,
        digest=digest.hexdigest(),
        files={name: (path / name).stat().st_size for name in ("tokens.bin", *(f"{name}.npy" for name in tables))},
        blocks=dict(bytes=BLOCK, sha256=blocks),
        versions=dict(numpy=np.__version__),
    )
    manifest |= {key: value() if callable(value) else value for key, value in extra.items()}
    with open(path / MANIFEST, "w", encoding="utf-8") as text:
        text.write(json.dumps(manifest, indent=2) + "\n")
        _sync(text)
    return digest.hexdigest()


class _DigestingFile:
    """Writes a file and computes the SHA-256 of each of its blocks."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._done, self._left = file, list[str](), BLOCK
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        view = memoryview(data).cast("B")
        while len(view):
            part, view = view[: self._left], view[self._left :]
            self._digest.update(part)
            self._left -= len(part)
            if not self._left:
                self._done.append(self._digest.hexdigest())
                self._digest, self._left = hashlib.sha256(), BLOCK

    def digests(self) -> list[str]:
        return [*self._done, *([self._digest.hexdigest()] if self._left < BLOCK else [])]


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join small pieces into larger ones, so that the overhead per piece does not matter."""
    held: list[Piece] = []
    size = 0
    for piece in pieces:
        if not len(piece.tokens):
            continue
        if held and (held[-1].source != piece.source or size > _PIECE_TOKENS):
            yield _concatenated(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece.tokens)
    if held:
        yield _concatenated(held)


def _concatenated(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    tokens, sentence_lengths, document_lengths = (
        np.concatenate(arrays) for arrays in list(zip(*pieces, strict=True))[:3]
    )
    return Piece(tokens, sentence_lengths, document_lengths, pieces[0].source)


def _extend(starts: array.array[int], lengths: np.ndarray) -> None:
    """Append the ends of items with these lengths, the first of which begins at starts[-1]."""
    assert lengths.min() > 0, "documents and sentences have tokens"
    starts.frombytes((starts[-1] + np.cumsum(lengths, dtype=np.int64)).tobytes())


def _sync(file: Any) -> None:
    """Flush to disk, so that a power cut after the rename cannot leave empty files."""
    file.flush()
    os.fsync(file.fileno())
