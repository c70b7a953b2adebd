"""Reading sentencepiece .model files without a protobuf library.

The schema is sentencepiece's `sentencepiece_model.proto`. The package ships generated code for it, but that rejects every protobuf
library older than the one it was generated with, and other packages often pin an older one.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE, CHAR = 1, 2, 4  # kinds of models

# Appended to a model file, this sets normalizer_spec.add_dummy_prefix to false, because protobuf merges repeated messages.
NO_PREFIX = b"\x1a\x02\x18\x00"
MAX_SCORE = 1e9  # absolute value of a piece's score: nats, or for BPE the rank of the merge
_MAX_PIECES = 2**22
_MAX_PIECE_CHARACTERS = 2**13  # pieces in use have hundreds at most
_MAX_KEYS = 2**20  # left sides of compiled rules
_MAX_KEY_BYTES = 256

_VARINT, _LENGTH = 0, 2  # wire types of fields
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_TRAINER, _NORMALIZER, _DENORMALIZER = 2, 3, 5  # parts of a model


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """Pieces as (text, score, type) in the order of their ids, and the settings that encoding depends on."""

    pieces: list[tuple[str, float, int]]
    kind: int
    unk_id: int
    byte_fallback: bool
    charsmap: bytes  # compiled normalization rules; empty for none
    adds_prefix: bool  # whether a space is prepended to a text
    removes_spaces: bool  # whether spaces at both ends are removed, and runs of spaces folded


def read_model(data: bytes) -> SentencePieceModel:
    """Read a serialized ModelProto.

    Raises:
      ValueError: the bytes are not such a message, or it has no pieces, or invalid values.
    """
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, int | bytes]] = {_TRAINER: {}, _NORMALIZER: {}, _DENORMALIZER: {}}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_as_bytes(value)))
                (score,) = struct.unpack("<f", _as_bytes(piece.get(2, bytes(4))))
                sort = piece.get(3, NORMAL)
                if not isinstance(sort, int):
                    raise ValueError(f"its piece {len(pieces)} has an unknown type")
                pieces.append((_as_bytes(piece[1]).decode(), score, sort))
            elif number in specs:
                specs[number].update(_fields(_as_bytes(value)))
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("not a sentencepiece model") from error
    trainer, normalizer = specs[_TRAINER], specs[_NORMALIZER]
    _check_pieces(pieces)
    for spec in (normalizer, specs[_DENORMALIZER]):
        check_charsmap(spec.get(2, b""))
    kind, unknown = trainer.get(3, UNIGRAM), trainer.get(40, 0)
    if not isinstance(kind, int) or not isinstance(unknown, int) or unknown >= len(pieces):
        raise ValueError("the id of its unknown piece is out of range")
    return SentencePieceModel(
        pieces,
        kind=kind,
        unk_id=unknown,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=_as_bytes(normalizer.get(2, b"")),
        adds_prefix=bool(normalizer.get(3, 1)),
        removes_spaces=bool(normalizer.get(4, 1)),
    )


def write_model(model: SentencePieceModel) -> bytes:
    """Serialize a model as a ModelProto, the inverse of `read_model`."""

    def varint(value: int) -> bytes:
        low = value & 0x7F
        return bytes((low,)) if value < 0x80 else bytes((low | 0x80,)) + varint(value >> 7)

    def field(number: int, value: int | bytes) -> bytes:
        if isinstance(value, int):
            return varint(number << 3 | _VARINT) + varint(value)
        return varint(number << 3 | _LENGTH) + varint(len(value)) + value

    def piece(text: str, score: float, sort: int) -> bytes:
        number = bytes((2 << 3 | 5,)) + struct.pack("<f", score)  # wire type 5: 4 bytes
        return field(1, field(1, text.encode()) + number + field(3, sort))

    trainer = field(3, model.kind) + field(35, int(model.byte_fallback)) + field(40, model.unk_id)
    rules = field(2, model.charsmap) if model.charsmap else b""
    normalizer = rules + field(3, int(model.adds_prefix)) + field(4, int(model.removes_spaces))
    return b"".join(piece(*one) for one in model.pieces) + field(_TRAINER, trainer) + field(_NORMALIZER, normalizer)


def _check_pieces(pieces: list[tuple[str, float, int]]) -> None:
    if not pieces:
        raise ValueError("it has no pieces")
    if len(pieces) > _MAX_PIECES:
        raise ValueError(f"it has more than {_MAX_PIECES:,} pieces")
    for number, (text, score, sort) in enumerate(pieces):
        if not -MAX_SCORE <= score <= MAX_SCORE:
            raise ValueError(f"its piece {number} has the score {score}")
        if not NORMAL <= sort <= BYTE:
            raise ValueError(f"its piece {number} has an unknown type")
        if not text or len(text) > _MAX_PIECE_CHARACTERS:
            raise ValueError(f"its piece {number} has {len(text)} characters")


def check_charsmap(charsmap: bytes | int) -> None:
    """Raise a ValueError for compiled normalization rules with offsets out of bounds, which their readers do not check."""
    if charsmap == b"":
        return
    if not isinstance(charsmap, bytes):
        raise ValueError("its compiled rules are not bytes")
    trie_keys(charsmap)


def trie_keys(charsmap: bytes) -> list[str]:
    """Return the left sides of compiled rules.

    Format: the length of a double-array trie (4 bytes), the trie, and the right sides, each terminated by a NUL. A unit of the trie
    (Darts-clone) has a label in its lowest byte (the character that leads to it), a bit that marks the end of a key, and an offset to
    its children: child = (unit's index ^ offset) ^ label. The child with label 0 has the position of the right side.

    The trie is read one level (key length) at a time. Example: the keys "a" and "ab" give the levels [root], ["a"], ["ab"].

    Raises:
      ValueError: the rules are damaged.
    """
    size, right = int.from_bytes(charsmap[:4], "little"), len(charsmap) - 4
    right -= size
    if size % 4 or not size or right < 1 or charsmap[-1]:
        raise ValueError("its compiled rules have the wrong length")
    charsmap[4 + size :].decode("utf-8")  # raises a UnicodeDecodeError, which is a ValueError
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64)
    label, bases = units & 255, np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    inner = np.flatnonzero((units >> 31 == 0) & (label > 0))
    inner = inner[np.argsort(inner ^ label[inner], kind="stable")]
    owners = inner ^ label[inner]  # the base of the parent; units with the same endings share their children
    keys: list[str] = []
    level, texts = np.zeros(1, np.int64), [b""]
    while len(level):
        if (bases[level] | 255).max() >= len(units):
            raise ValueError("its compiled rules point out of bounds")
        ends = np.flatnonzero((units[level] >> 8) & 1)
        values = units[bases[level[ends]]]
        if len(values) and ((values >> 31 == 0).any() or (values & 0x7FFFFFFF).max() >= right):
            raise ValueError("its compiled rules have right sides out of bounds")
        keys += [texts[row].decode("utf-8", errors="replace") for row in ends]
        first, last = (np.searchsorted(owners, bases[level], side) for side in ("left", "right"))
        counts = last - first
        if len(keys) + counts.sum() > _MAX_KEYS or len(texts[0]) > _MAX_KEY_BYTES:
            raise ValueError("its compiled rules are cyclic or too large")
        rows = np.repeat(np.arange(len(level)), counts)
        level = inner[np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(rows))]
        texts = [texts[row] + bytes((byte,)) for row, byte in zip(rows.tolist(), label[level].tolist(), strict=True)]
    return keys


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a message; embedded messages, strings and floats are bytes."""
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = data[pos], pos + 1
        if tag >= 0x80:
            tag, pos = _varint(data, pos - 1)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, pos = _varint(data, pos)
        else:
            length = _FIXED.get(wire, -1)
            if wire == _LENGTH:
                length, pos = data[pos], pos + 1
                if length >= 0x80:  # rare: this loop is hot, since models have up to 250,000 pieces
                    length, pos = _varint(data, pos - 1)
            value, pos = data[pos : pos + length], pos + length
            if length < 0 or pos > end:
                raise IndexError("a field has an unknown wire type, or ends past the data")
        yield number, value


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where bytes are expected")
    return value


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[pos]
        value |= (byte & 0x7F) << shift
        pos, shift = pos + 1, shift + 7
        if byte < 0x80:
            return value, pos
        if shift > 63:
            raise IndexError("a number has more than 64 bits")
