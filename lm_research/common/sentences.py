"""Splitting text into sentences by a few rules, deterministically and with occasional errors.

A sentence ends at . ! ? … (including closing quotes and brackets) before white space, unless the next word starts with a lower-case
letter or the previous one is an abbreviation, an initial or a list number. The full-width 。！？ always end a sentence.

Example: 'Mr. J. Smith left. "Why?" he asked. Nobody knew!' has the sentences 'Mr. J. Smith left.', '"Why?" he asked.' and
'Nobody knew!'.

Splitting must be faster than tokenizing. Therefore many documents are classified at once as arrays of code points, and only the full
stops that the arrays cannot decide are examined one by one.

Shapes: P characters of all documents joined, C candidates (runs of . ! ? …).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

_TERMINAL, _FULL_WIDTH, _CLOSING, _SPACE, _OPENING, _LOWER, _LETTER, _DECIMAL = (1 << bit for bit in range(8))
_CLASSES = {
    _TERMINAL: ".!?…",
    _FULL_WIDTH: "。！？｡",
    _CLOSING: "\"'”’)]»」』）】》〉",
    _OPENING: "\"'“‘([«",
}
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # U.S, e.g, J
_NUMBER = re.compile(r"\(?\d{1,3}")
# Words that rarely end a sentence before a capital letter.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr gen col maj capt lt sgt gov sen rep pres messrs mme mlle mgr fr "
    "vs viz cf al approx ca vol ed eds fig figs eq sec ch chap pp par art dept univ inc ltd co corp bros "
    "jan feb mar apr jun jul aug sep sept oct nov dec mt ft ave blvd".split()
)
# Words that do not end a sentence before a digit: "No. 5", but "The answer was no. Then he left."
_BEFORE_NUMBER = frozenset("no nos p".split())
_ASCII_SPACES = "\t\r\x0b\x0c\x1c\x1d\x1e\x1f"  # besides the space and the line feed
_LONGEST = 7  # letters of a word in the tables, which is encoded as an integer with one byte per letter
_SEEN_BEFORE = 24  # characters before a full stop that are examined


def split_sentences(text: str, keep_newlines: bool = False) -> list[str]:
    """Split a text into sentences.

    Args:
      text: any text.
      keep_newlines: False folds every run of white space, line breaks included, into one space and strips each sentence.
        True is lossless: a line break ends a sentence and is kept at its end, spaces between two sentences begin the
        second, and the sentences joined are the text.

    Returns:
      Non-empty strings; an empty list for an empty text (or, without keep_newlines, one of only white space).
    """
    return split_documents([text], keep_newlines)[0]


def split_documents(texts: Sequence[str], keep_newlines: bool = False) -> tuple[list[str], np.ndarray]:
    """Return the sentences of all texts in one list, and the number of each text's sentences (int64); see `split_sentences`."""
    if not keep_newlines:
        texts = [_fold(text) for text in texts]
    joined = "\n".join(texts)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    text_ends = np.cumsum(lengths + 1) - 1
    points_P, classes_P = _classified(joined)
    lines = np.flatnonzero(points_P == ord("\n"))
    cuts = _cuts(joined, points_P, classes_P, lines)
    if keep_newlines:
        ends = np.sort(np.concatenate([cuts, lines + 1, text_ends]))
        starts = np.concatenate([[0], ends[:-1]])
        starts[1:] += np.isin(starts[1:], text_ends)  # the line feed that joins two texts belongs to neither
    else:
        ends = np.sort(np.concatenate([cuts, text_ends]))
        starts = np.concatenate([[0], ends[:-1]])
        starts = starts + (_at(classes_P, starts) & _SPACE > 0)
    filled = starts < ends  # without empty texts, and places that are twice in `ends`
    starts, ends = starts[filled], ends[filled]
    sentences = [joined[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    upto = np.searchsorted(ends, text_ends, side="right")
    return sentences, np.diff(upto, prepend=0)


def _fold(text: str) -> str:
    """Return " ".join(text.split()), with a fast path for texts whose only white space is spaces and line feeds."""
    folded = text.replace("\n", " ")
    if text.isascii():  # takes constant time
        tidy = not any(space in text for space in _ASCII_SPACES)
    else:
        tidy = folded.isprintable()  # of the spaces only " " is printable
    if tidy and "  " not in folded:
        return folded.strip(" ")
    return " ".join(text.split())


def _classified(joined: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points [P], uint8 for ASCII and else uint32, and the classes [P]."""
    if joined.isascii():
        raw = joined.encode("ascii")
        return np.frombuffer(raw, np.uint8), np.frombuffer(raw.translate(_class_table()[:256].tobytes()), np.uint8)
    points_P = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points_P, _class_table()[points_P]


@functools.cache
def _class_table() -> np.ndarray:
    """uint8 [code points]: the classes of each character, as bits."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for bit, characters in _CLASSES.items():
        table[[ord(character) for character in characters]] |= bit
    for point in range(0x32400):  # the following classes have no members beyond
        character = chr(point)
        bits = _SPACE * character.isspace() | _LOWER * character.islower() | _DECIMAL * character.isdecimal()
        table[point] |= bits | _LETTER * (character.isalnum() and not character.isdecimal())
    return table


def _cuts(joined: str, points_P: np.ndarray, classes_P: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return the places in `joined` where a sentence ends before other text of the same line."""
    full_ends = _skip(_runs(classes_P, _FULL_WIDTH)[1], classes_P, points_P, _CLOSING)
    first_C, stop_C = _runs(classes_P, _TERMINAL)
    end_C = _skip(stop_C, classes_P, points_P, _CLOSING)
    before_space = (_at(classes_P, end_C) & _SPACE > 0) & (_at(points_P, end_C) != ord("\n"))
    first_C, stop_C, end_C = first_C[before_space], stop_C[before_space], end_C[before_space]
    next_C = _skip(_skip(end_C, classes_P, points_P, _SPACE), classes_P, points_P, _OPENING)
    follows_C = _at(classes_P, next_C) * (_at(points_P, next_C) != ord("\n"))
    is_end_C = follows_C & _LOWER == 0
    lone = (stop_C - first_C == 1) | (_at(points_P, first_C + 1) != ord("."))
    stop = is_end_C & (points_P[first_C] == ord(".")) & lone
    stops = np.flatnonzero(stop)
    is_end_C[stops], unsure = _after_word(first_C[stops], follows_C[stops] & _DECIMAL > 0, points_P, classes_P)
    sure = np.sort(np.concatenate([end_C[is_end_C], full_ends]))
    more = _one_by_one(stops[unsure], first_C, end_C, next_C, joined, sure, lines) if unsure.any() else []
    cuts = np.concatenate([sure, np.asarray(more, np.int64)]).astype(np.int64)
    rest: np.ndarray = _skip(cuts, classes_P, points_P, _SPACE)
    kept: np.ndarray = cuts[(rest < len(points_P)) & (_at(points_P, rest) != ord("\n"))]
    return kept


def _at(values_P: np.ndarray, places_C: np.ndarray) -> np.ndarray:
    """Return values_P[places_C], with 0 for places past the end."""
    if not len(values_P):
        return np.zeros(len(places_C), values_P.dtype)
    return np.where(places_C < len(values_P), values_P[np.minimum(places_C, len(values_P) - 1)], 0)


def _runs(classes_P: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the stop of each run of characters of a class. Example: ". .." has [0, 2] and [1, 4]."""
    places = np.flatnonzero(classes_P & kind != 0)
    if not len(places):
        return places, places
    gaps = np.flatnonzero(np.diff(places) > 1)
    return places[np.concatenate([[0], gaps + 1])], places[np.concatenate([gaps, [len(places) - 1]])] + 1


def _skip(places_C: np.ndarray, classes_P: np.ndarray, points_P: np.ndarray, kind: int) -> np.ndarray:
    """Advance each place to the first character that is not of the class, or is a line feed."""
    places_C = places_C.copy()
    moving = np.arange(len(places_C))
    while len(moving):
        here = places_C[moving]
        moving = moving[(_at(classes_P, here) & kind > 0) & (_at(points_P, here) != ord("\n"))]
        places_C[moving] += 1
    return places_C


def _after_word(
    place_C: np.ndarray, before_digit_C: np.ndarray, points_P: np.ndarray, classes_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide by the word before each full stop whether it ends a sentence; the second result marks undecided ones.

    All words are read backward in parallel, one character per iteration. Example: for "Mr. Smith" the word before the stop has the
    length 2 and the key 0x6d72 ("mr"), which is an abbreviation, so the stop does not end a sentence.
    """
    length_C = np.zeros(len(place_C), dtype=np.int64)
    key_C = np.zeros(len(place_C), dtype=np.uint64)  # the word's last letters in lower case, one byte each
    unsure_C = np.zeros(len(place_C), dtype=bool)
    inside = np.arange(len(place_C))  # candidates whose word has not begun yet
    for back in range(1, _SEEN_BEFORE + 1):
        at = place_C[inside] - back
        kind = classes_P[np.maximum(at, 0)]
        in_word = (kind & _SPACE == 0) & (at >= 0)
        inside, at, kind = inside[in_word], at[in_word], kind[in_word]
        if not len(inside):
            break
        length_C[inside] = back
        point = points_P[at]
        unsure_C[inside] |= (kind & (_DECIMAL | _FULL_WIDTH) != 0) | (point == ord("."))
        if back <= _LONGEST:
            lower = point + 32 * ((point >= ord("A")) & (point <= ord("Z")))
            key_C[inside] |= np.where(lower < 128, lower, 127).astype(np.uint64) << np.uint64(8 * back - 8)
    begin_C = place_C - length_C
    unsure_C |= (length_C == 0) | (_at(classes_P, begin_C) & _OPENING != 0)
    before_C = np.maximum(place_C - 1, 0)
    initial_C = (length_C == 1) & (classes_P[before_C] & _LETTER != 0) & (points_P[before_C] != ord("I"))
    short_C = length_C <= _LONGEST
    numbered_C = before_digit_C & np.isin(key_C, _keys(_BEFORE_NUMBER))
    return ~(initial_C | short_C & (np.isin(key_C, _keys(_ABBREVIATIONS)) | numbered_C) | unsure_C), unsure_C


@functools.cache
def _keys(words: frozenset[str]) -> np.ndarray:
    return np.array([int.from_bytes(word.encode(), "big") for word in words], dtype=np.uint64)


def _one_by_one(
    stops: np.ndarray,
    first_C: np.ndarray,
    end_C: np.ndarray,
    next_C: np.ndarray,
    joined: str,
    sure: np.ndarray,
    lines: np.ndarray,
) -> list[int]:
    """Return the ends of sentences among the full stops that `_after_word` leaves undecided, in order."""
    accepted: list[int] = []
    places = first_C[stops]
    line_starts = np.concatenate([[0], lines + 1])
    begins = line_starts[np.searchsorted(line_starts, places, side="right") - 1]
    index = np.searchsorted(sure, places, side="right") - 1
    begins = np.maximum(begins, np.where(index >= 0, sure[np.maximum(index, 0)], 0) if len(sure) else 0)
    rows = zip(places.tolist(), begins.tolist(), end_C[stops].tolist(), next_C[stops].tolist(), strict=True)
    for place, begin, end, following in rows:
        begin = max(begin, accepted[-1]) if accepted else begin
        if _ends_after(joined, begin, place, joined[following : following + 1]):
            accepted.append(end)
    return accepted


def _ends_after(line: str, begin: int, place: int, following: str) -> bool:
    """Whether the full stop at `place` ends the sentence that begins at `begin`."""
    before = line[max(begin, place - _SEEN_BEFORE) : place].split()
    word = before[-1].lstrip(_CLASSES[_OPENING]) if before else ""
    if word.lower() in _ABBREVIATIONS or (word.lower() in _BEFORE_NUMBER and following.isdigit()):
        return False
    if _INITIALS.fullmatch(word) and word != "I":
        return False
    return not (_NUMBER.fullmatch(word) and line[begin:place].strip() == word)
