"""What a sentencepiece .model file holds, read without a protobuf library.

The schema is sentencepiece's `sentencepiece_model.proto`. The package ships generated code for it, but that refuses every
protobuf older than the one it was generated with, and other packages of a machine often pin an older one.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE, CHAR = 1, 2, 4  # kinds of models

_VARINT, _LENGTH = 0, 2  # ways that a field is written; the others by the bytes they take:
_FIXED = {1: 8, 5: 4}


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """Pieces as (text, score, type) in the order of their ids, and what encoding depends on."""

    pieces: list[tuple[str, float, int]]
    kind: int
    unk_id: int
    byte_fallback: bool
    charsmap: bytes  # compiled rules of normalisation; empty for none
    adds_prefix: bool  # a space before the text
    removes_spaces: bool  # those at both ends, and all but one of several


def read_model(data: bytes) -> SentencePieceModel:
    """Reads a serialised ModelProto.

    Raises:
      ValueError: the bytes are no such message, or one without pieces.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                pieces.append((piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(value))
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("not a sentencepiece model") from error
    if not pieces:
        raise ValueError("a sentencepiece model without pieces")
    return SentencePieceModel(
        pieces,
        kind=trainer.get(3, UNIGRAM),
        unk_id=trainer.get(40, 0),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        adds_prefix=bool(normalizer.get(3, 1)),
        removes_spaces=bool(normalizer.get(4, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message; embedded messages, strings and floats as their bytes."""
    place, end = 0, len(data)
    while place < end:
        tag, place = data[place], place + 1
        if tag >= 0x80:
            tag, place = _varint(data, place - 1)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, place = _varint(data, place)
        else:
            length = _FIXED.get(wire, -1)
            if wire == _LENGTH:
                length, place = data[place], place + 1
                if length >= 0x80:  # most are short, and a quarter of a million pieces is common
                    length, place = _varint(data, place - 1)
            value, place = data[place : place + length], place + length
            if length < 0 or place > end:
                raise IndexError("a field of no known kind, or past the end")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
