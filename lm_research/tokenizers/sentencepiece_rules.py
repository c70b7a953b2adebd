"""A sentencepiece model's normalization as a normalizer of the `tokenizers` library.

A model's compiled rules are pairs of texts: at each place in a text, the longest left side that matches is replaced by its right
side. The library's own reader of these rules (Precompiled) processes one grapheme at a time and takes the shortest left side, which
loses accents of decomposed letters. Here Precompiled only sees single characters; sequences are composed by Unicode's NFC, restricted
to the sequences that have rules.
"""

from __future__ import annotations

import collections
import functools
import unicodedata
from collections.abc import Iterable

from lm_research.tokenizers.sentencepiece_model import USER_DEFINED, SentencePieceModel, trie_keys
from tokenizers import Regex, normalizers

SPACE = "\u2581"
# Unicode noncharacters. _WALL is inserted where NFC must not compose, _GAP between the characters of a grapheme, and _MASKS replace
# user-defined symbols, which are not normalized.
_WALL, _GAP = "\U0010fffe", "\U0010ffff"
_MASKS = range(0xFDD0, 0xFDF0)
_INSIDE = r"(?m:(?<=.))"  # not at a text's beginning
# Places within a grapheme: before what joins the character before it.
_JOINS = _INSIDE + r"(?:(?=[\p{M}\x{200c}\x{200d}\x{e33}\x{eb3}\x{ff9e}\x{ff9f}])|(?<=\r)(?=\n))"


def normalizer_of(model: SentencePieceModel, space: str) -> normalizers.Normalizer | None:
    """Build the model's normalizer, None if texts stay unchanged.

    Args:
      model: the sentencepiece model.
      space: the character for a space in the vocabulary: SPACE, or " " if texts may contain SPACE itself.
    """
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        symbols = sorted((text for text, _, sort in model.pieces if sort == USER_DEFINED), key=len, reverse=True)
        masks = [*zip(symbols, map(chr, _MASKS), strict=False)]
        steps += [normalizers.Replace(symbol, mask) for symbol, mask in masks]
        steps += _charsmap(model.charsmap)
        steps += [normalizers.Replace(mask, symbol) for symbol, mask in masks]
    if model.removes_spaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.adds_prefix:
        steps.append(normalizers.Prepend(" "))
        if space == " ":  # a text is then encoded in parts, separated by SPACE
            parts = ((r"\A " + SPACE, SPACE), (f"{SPACE}(?=[^{SPACE}])", f"{SPACE} "))
            steps += [normalizers.Replace(Regex(pattern), text) for pattern, text in parts]
    if space != " ":
        steps.append(normalizers.Replace(" ", space))
    if model.removes_spaces:
        steps.append(normalizers.Replace(Regex(f"{space}+\\z"), ""))
    return normalizers.Sequence(steps) if steps else None


@functools.lru_cache(maxsize=4)
def _charsmap(charsmap: bytes) -> tuple[normalizers.Normalizer, ...]:
    rules = (normalizers.Replace(Regex(_JOINS), _GAP), normalizers.Precompiled(charsmap), normalizers.Replace(_GAP, ""))
    walls = _walls([key for key in trie_keys(charsmap) if len(key) > 1])
    if not walls:
        return rules
    return (normalizers.Replace(Regex(walls), _WALL), *rules, normalizers.NFC(), normalizers.Replace(_WALL, ""))


def _walls(sequences: list[str]) -> str:
    """Return a pattern that matches between two characters that must not be composed; "" if there are no sequences."""
    if not sequences:
        return ""
    before, after = collections.defaultdict(set), collections.defaultdict(set)
    for first, second in {(key[i], key[i + 1]) for key in sequences for i in range(len(key) - 1)}:
        after[first].add(second)
        before[second].add(first)
    starts, joined = set(after), set(before)
    # Marks grouped by the set of marks that may follow them.
    groups = collections.defaultdict(set)
    for mark in joined:
        groups[frozenset(after.get(mark, ()))].add(mark)
    places = [f"(?<!{_set(starts)})(?={_set(joined)})", rf"(?=[[\p{{M}}\x{{344}}]&&[^{_set(joined)[1:]}])"]
    for seconds, marks in sorted(groups.items(), key=lambda group: min(group[1])):
        allowed = f"(?!{_set(seconds)})" if seconds else ""
        places.append(f"(?<={_set(marks)}){allowed}(?={_set(joined)})")
    # NFC composes across marks below or next to a letter, so these marks are only allowed after letters that have a rule with them.
    for mark in sorted(joined & starts):
        if unicodedata.combining(mark) not in (0, 230):
            places.append(f"(?<!{_set(before[mark])})(?={_set(mark)})")
    any_mark = rf"(?=[\p{{M}}\x{{344}}{_set(joined)[1:]})"
    return f"{_INSIDE}{any_mark}(?:{'|'.join(places)})"


def _set(characters: Iterable[str]) -> str:
    """Return a character class as a pattern."""
    ranges: list[list[int]] = []
    for number in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return "[" + "".join(f"\\x{{{a:x}}}" + f"-\\x{{{b:x}}}" * (b > a) for a, b in ranges) + "]"
