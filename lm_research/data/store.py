"""The token store: a tokenised corpus in four flat files that are mapped into memory, not read.

    tokens.bin      uint16 or uint32, little endian: the ids of all sentences, one after another
    sentences.npy   int64 [S + 1]: where each sentence starts in tokens.bin, then the end
    documents.npy   int64 [D + 1]: where each document starts in sentences.npy, then the end
    counts.npy      int64 [V]: how often each id occurs, for unigram baselines
    manifest.json   counts, sizes of the files, digests and versions; written last

Sizes: T tokens, S sentences, D documents, V vocabulary.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from lm_research.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A store on disk. Arrays are read-only views of the files.

    Attributes:
      tokens: uint16 or uint32 [T].
      sentence_starts: int64 [S + 1], offsets into tokens.
      document_starts: int64 [D + 1], offsets into sentence_starts.
      token_counts: int64 [V].
      manifest: what manifest.json says, extra keys of `write_store` included.
    """

    path: pathlib.Path
    manifest: dict[str, Any]
    tokens: np.ndarray
    sentence_starts: np.ndarray
    document_starts: np.ndarray
    token_counts: np.ndarray

    @property
    def num_tokens(self) -> int:
        return self.manifest["num_tokens"]

    @property
    def num_sentences(self) -> int:
        return self.manifest["num_sentences"]

    @property
    def num_documents(self) -> int:
        return self.manifest["num_documents"]

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the tokens and both tables of offsets."""
        return self.manifest["digest"]

    def document_tokens(self, i: int) -> np.ndarray:
        """All ids of document i, in the store's integer type."""
        first, last = self.sentence_starts[self.document_starts[i : i + 2]]
        return self.tokens[first:last]

    def __reduce__(self) -> tuple:
        """Pickles as its path: worker processes map the files themselves instead of receiving their content."""
        return TokenStore.open, (self.path,)

    @classmethod
    def open(cls, path: pathlib.Path | str) -> TokenStore:
        """Maps a store into memory; takes milliseconds whatever its size.

        Raises:
          DataError: it is missing or damaged (sizes and ends of the tables are checked, not every byte).
        """
        path = pathlib.Path(path)
        manifest = _read_manifest(path)
        for name, size in manifest["files"].items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise _damaged(path, f"{name} {state}")
        try:
            tokens = np.memmap(path / "tokens.bin", dtype=np.dtype(manifest["dtype"]).newbyteorder("<"), mode="r")
            tables = [np.load(path / f"{name}.npy", mmap_mode="r") for name in ("sentences", "documents", "counts")]
        except (ValueError, OSError, TypeError) as error:
            raise _damaged(path, str(error)) from error
        store = cls(path, manifest, tokens, *tables)
        ends = (int(tables[0][-1]), len(tables[0]) - 1, int(tables[1][-1]), len(tables[1]) - 1)
        said = (store.num_tokens, store.num_sentences, store.num_sentences, store.num_documents)
        if ends != said or len(tokens) != store.num_tokens:
            raise _damaged(path, f"its tables end at {ends} and its manifest says {said}")
        return store


def _damaged(path: pathlib.Path, what: str) -> DataError:
    return DataError(
        f"The token store {path} is damaged: {what}. Delete the folder {path.parent}; the next run rebuilds it."
    )


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"it has no {MANIFEST}" if path.is_dir() else "the folder does not exist"
        raise DataError(f"{path} is not a token store: {what}.") from None
    except ValueError as error:
        raise _damaged(path, f"{MANIFEST} is not JSON ({error})") from error
    needed = {"format", "dtype", "files", "num_tokens", "num_sentences", "num_documents", "digest"}
    if not isinstance(manifest, dict) or needed - set(manifest):
        raise _damaged(path, f"{MANIFEST} lacks keys")
    if manifest["format"] != FORMAT:
        raise DataError(
            f"The token store {path} has format {manifest['format']}; this version of lm_research reads format "
            f"{FORMAT}. Delete the folder {path.parent}; the next run rebuilds it."
        )
    return manifest


def write_store(
    path: pathlib.Path, documents: Iterable[list[list[int]]], tokenizer_digest: str, vocab_size: int, **extra: Any
) -> TokenStore:
    """Writes a store next to `path` and renames it into place when it is whole.

    A build that is killed leaves nothing at `path`. Two processes may build the same store at once: the first to end
    wins, the other takes the winner's.

    Args:
      path: folder of the store; its parent is made.
      documents: documents as lists of sentences as non-empty lists of ids; read once, kept nowhere.
      tokenizer_digest: of the tokenizer that made the ids.
      vocab_size: V; every id is below it.
      extra: further keys of the manifest; a function is called without arguments after the last document.

    Raises:
      DataError: there is no document, or another store with other content stands at `path`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        digest = _write_files(temporary, documents, tokenizer_digest, vocab_size, extra)
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    store = TokenStore.open(path)
    if store.digest != digest:
        raise DataError(
            f"{path} holds another token store (digest {store.digest[:12]}, not {digest[:12]}). Delete that folder, or "
            "build in another one."
        )
    return store


def publish(temporary: pathlib.Path, path: pathlib.Path) -> bool:
    """Renames a finished folder into place; False when another process was first, whose folder then stays."""
    temporary.chmod(0o755)  # mkdtemp's folders are private; a shared cache is not
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
        return False
    return True


def _write_files(
    path: pathlib.Path,
    documents: Iterable[list[list[int]]],
    tokenizer_digest: str,
    vocab_size: int,
    extra: dict[str, Any],
) -> str:
    """Writes the files of a store and returns its digest."""
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    counts = np.zeros(vocab_size, dtype=np.int64)
    sentence_starts, document_starts = array.array("q", [0]), array.array("q", [0])
    digest = hashlib.sha256(dtype.str.encode())
    with open(path / "tokens.bin", "wb") as file:
        for sentences in documents:
            assert sentences and all(sentences), "documents and sentences have tokens"
            for sentence in sentences:
                sentence_starts.append(sentence_starts[-1] + len(sentence))
            document_starts.append(len(sentence_starts) - 1)
            tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=np.int64)
            assert tokens.min() >= 0 and tokens.max() < vocab_size, (tokens.min(), tokens.max(), vocab_size)
            np.add.at(counts, tokens, 1)
            data = tokens.astype(dtype).tobytes()
            digest.update(data)
            file.write(data)
        _sync(file)
    if len(document_starts) == 1:
        raise DataError(f"There is no document to store in {path.parent}: the corpus is empty.")
    tables = dict(sentences=np.array(sentence_starts), documents=np.array(document_starts), counts=counts)
    for name, table in tables.items():
        digest.update(table.astype("<i8").tobytes())
        with open(path / f"{name}.npy", "wb") as file:
            np.save(file, table.astype("<i8"))
            _sync(file)
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
        versions=dict(numpy=np.__version__),
        **{key: value() if callable(value) else value for key, value in extra.items()},
    )
    with open(path / MANIFEST, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=2) + "\n")
        _sync(file)
    return manifest["digest"]


def _sync(file: Any) -> None:
    """So that a power cut after the rename cannot leave files without their bytes."""
    file.flush()
    os.fsync(file.fileno())
