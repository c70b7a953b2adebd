"""What a sentencepiece model does to a text before it looks for pieces, as a normalizer of the `tokenizers` library.

A model's compiled rules are pairs of texts: at each place of a text the longest left side that stands there becomes its right
side. The library's own reader of these rules (Precompiled) looks at one grapheme at a time and takes the shortest left side,
which loses accents of decomposed letters. Here it only ever sees single characters; sequences are composed by Unicode's NFC,
kept to those that the rules know.
"""

from __future__ import annotations

import collections
import functools
import unicodedata
from collections.abc import Iterable

from lm_research.tokenizers.sentencepiece_model import USER_DEFINED, SentencePieceModel, trie_keys
from tokenizers import Regex, normalizers

SPACE = "\u2581"
# Two characters that Unicode keeps from texts. One stands where NFC must not compose, one between the characters of a grapheme.
_WALL, _GAP = "\U0010fffe", "\U0010ffff"
_MASKS = range(0xFDD0, 0xFDF0)  # others: they stand for symbols that a model takes as they are
_INSIDE = r"(?m:(?<=.))"  # not at a text's beginning
# Places within a grapheme: before what joins the character before it.
_JOINS = _INSIDE + r"(?:(?=[\p{M}\x{200c}\x{200d}\x{e33}\x{eb3}\x{ff9e}\x{ff9f}])|(?<=\r)(?=\n))"


def normalizer_of(model: SentencePieceModel, space: str) -> normalizers.Normalizer | None:
    """The model's normalizer.

    Args:
      model: of it.
      space: what stands for a space in the vocabulary: SPACE, or a space if texts may hold SPACE itself.
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
        if space == " ":  # a text is read in parts then, between which SPACE stands
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
    """A pattern of the places between two characters that must not be composed; "" if nothing is."""
    if not sequences:
        return ""
    before, after = collections.defaultdict(set), collections.defaultdict(set)
    for first, second in {(key[place], key[place + 1]) for key in sequences for place in range(len(key) - 1)}:
        after[first].add(second)
        before[second].add(first)
    goes_on, joined = set(after), set(before)
    # Of marks: those behind which others may come; the same ones for all of a group.
    groups = collections.defaultdict(set)
    for mark in joined:
        groups[frozenset(after.get(mark, ()))].add(mark)
    places = [f"(?<!{_set(goes_on)})(?={_set(joined)})", rf"(?=[[\p{{M}}\x{{344}}]&&[^{_set(joined)[1:]}])"]
    for seconds, marks in sorted(groups.items(), key=lambda group: min(group[1])):
        allowed = f"(?!{_set(seconds)})" if seconds else ""
        places.append(f"(?<={_set(marks)}){allowed}(?={_set(joined)})")
    # NFC composes across marks that stand below or beside a letter: only letters that take them may have them.
    for mark in sorted(joined & goes_on):
        if unicodedata.combining(mark) not in (0, 230):
            places.append(f"(?<!{_set(before[mark])})(?={_set(mark)})")
    some = rf"(?=[\p{{M}}\x{{344}}{_set(joined)[1:]})"
    return f"{_INSIDE}{some}(?:{'|'.join(places)})"


def _set(characters: Iterable[str]) -> str:
    """A class of characters as a pattern."""
    ranges: list[list[int]] = []
    for number in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return "[" + "".join(f"\\x{{{a:x}}}" + f"-\\x{{{b:x}}}" * (b > a) for a, b in ranges) + "]"
