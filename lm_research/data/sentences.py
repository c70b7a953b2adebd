"""Splitting text into sentences by a few rules; wrong now and then, and the same every time.

A sentence ends at . ! ? … (with the quotes and brackets that close it) before white space, unless what follows starts
with a small letter or what stands before is an abbreviation, an initial or a list number; and at the full-width
。！？ wherever they stand.
"""

from __future__ import annotations

import re

_CLOSING = "\"'”’)\\]»」』）】》〉"
_END = re.compile(rf"[.!?…]+[{_CLOSING}]*(?=\s)|[。！？｡]+[{_CLOSING}]*")
_OPENING = re.compile(r"\s+[\"'“‘(\[«]*")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # U.S, e.g, J
_NUMBER = re.compile(r"\(?\d{1,3}")
# Before a capital letter these hardly ever end a sentence.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr gen col maj capt lt sgt gov sen rep pres messrs mme mlle mgr fr "
    "vs viz cf al approx ca vol ed eds fig figs eq sec ch chap pp par art dept univ inc ltd co corp bros "
    "jan feb mar apr jun jul aug sep sept oct nov dec mt ft ave blvd".split()
)
# Before a digit only: "No. 5", but "He said no. Then he left."
_BEFORE_NUMBER = frozenset("no nos p".split())


def split_sentences(text: str, keep_newlines: bool = False) -> list[str]:
    """The sentences of a text, in order.

    Args:
      text: any text.
      keep_newlines: False folds every run of white space, line breaks too, into one space and strips each sentence.
        True loses nothing: a line break ends a sentence and stays at its end, spaces between two sentences open the
        second, and the sentences joined are the text.

    Returns:
      Non-empty strings; an empty list for an empty text (or, without keep_newlines, one of white space only).
    """
    if keep_newlines:
        return [sentence for line in _LINE.findall(text) for sentence in _split_line(line)]
    return [sentence.strip() for sentence in _split_line(" ".join(text.split()))]


def _split_line(line: str) -> list[str]:
    """Cuts a line after each end of a sentence; white space at the line's end stays with the last sentence."""
    sentences, start = [], 0
    for match in _END.finditer(line):
        if _is_end(line, start, match):
            sentences.append(line[start : match.end()])
            start = match.end()
    rest = line[start:]
    if sentences and not rest.strip():
        sentences[-1] += rest
    elif rest:
        sentences.append(rest)
    return sentences


def _is_end(line: str, start: int, match: re.Match[str]) -> bool:
    if match[0][0] in "。！？｡":
        return True
    opening = _OPENING.match(line, match.end())
    following = line[opening.end() : opening.end() + 1] if opening else ""
    if following.islower():
        return False
    if match[0][0] != "." or match[0].startswith(".."):
        return True
    before = line[max(start, match.start() - 24) : match.start()].split()
    word = before[-1].lstrip("\"'“‘([«") if before else ""
    if word.lower() in _ABBREVIATIONS or (word.lower() in _BEFORE_NUMBER and following.isdigit()):
        return False
    if _INITIALS.fullmatch(word) and word != "I":
        return False
    return not (_NUMBER.fullmatch(word) and line[start : match.start()].strip() == word)
