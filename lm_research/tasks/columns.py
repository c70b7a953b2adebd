"""Column files for tagging: one word a line with its tag in a column, a blank line between sentences.

A file that has a tab is split at tabs, so its words may contain spaces. Any other file is split at ASCII spaces only; no-break and
ideographic spaces are part of words. Two formats are detected:

    CoNLL-2003   words in the first column, tags in the last; -DOCSTART- lines are skipped
    CoNLL-U      (universaldependencies.org/format.html) ten named columns, of which the first is the word's number; comments, multi-word
                 tokens (1-2) and empty nodes (8.1) are skipped. CoNLL-U Plus names its columns in its first line, ID first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from lm_research.data.sources.files import SourceFile
from lm_research.data.sources.problems import Problems
from lm_research.data.sources.text import read_lines
from lm_research.errors import DataError, suggest

CONLL_U = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_NUMBER = re.compile(r"\d+([-.]\d+)?")
_PLUS = re.compile(r"# *global\.columns *= *(.+)")


class Sentence(NamedTuple):
    """The number of its first line, its words, and a tag for each."""

    line: int
    words: list[str]
    tags: list[str]


class Form(NamedTuple):
    """The format of a file: whether tabs separate its columns, and their names, empty unless it is CoNLL-U."""

    tabs: bool
    names: tuple[str, ...]

    def divide(self, line: str) -> list[str]:
        """Split a line into columns; [] for a blank line or a CoNLL-U comment."""
        line = line.removesuffix("\n")
        if not line.strip(" \t") or (self.names and line.startswith("#")):
            return []
        if self.tabs:
            return [column.strip(" ") or column for column in line.split("\t")]
        return [column for column in line.split(" ") if column]


def read_columns(file: SourceFile, column: str) -> Iterator[Sentence]:
    """Yield the sentences of a file.

    Args:
      file: UTF-8 text.
      column: the column of the tags, as in config.task.column.

    Raises:
      DataError: a line lacks the word or the tag, or the column does not exist.
    """
    form, sentence = _detect_form(file), Sentence(0, [], [])
    word, tag = form.names.index("FORM") if form.names else 0, _tag_index(column, form.names, str(file.path))
    for number, line in read_lines(file, Problems("stop")):
        columns = form.divide(line)
        if not line.strip(" \t\n") or columns[:1] and columns[0].split(" ")[0] == "-DOCSTART-":
            if sentence.words:
                yield sentence
            sentence = Sentence(0, [], [])
        elif columns and _is_word(columns, form, word, tag, f"{file.path}, line {number}"):
            sentence = sentence if sentence.words else Sentence(number, [], [])
            sentence.words.append(columns[word])
            sentence.tags.append(columns[tag])
    if sentence.words:
        yield sentence


def _detect_form(file: SourceFile) -> Form:
    """Detect the format from tabs anywhere, the comments before the first line of words, and that line."""
    tabs, names, first = False, CONLL_U, ""
    for _, line in read_lines(file, Problems("stop")):
        tabs = tabs or "\t" in line
        if first and tabs:
            break
        if not first and line.startswith("#"):
            names = tuple(found[1].split()) if (found := _PLUS.match(line)) else names
        elif not first and line.strip(" \t\n"):
            first = line
    columns = first.split("\t")
    is_conll_u = len(columns) == len(names) and "FORM" in names and _NUMBER.fullmatch(columns[0])
    return Form(tabs, names if is_conll_u else ())


def _tag_index(column: str, names: tuple[str, ...], file: str) -> int:
    """Find the index of the tag column; the default is UPOS in CoNLL-U, otherwise the last."""
    column = column or ("UPOS" if names else "-1")
    if re.fullmatch(r"-?[1-9][0-9]{0,8}", column):
        return int(column) - (int(column) > 0)
    if column.upper() in names:
        return names.index(column.upper())
    if names:
        raise DataError(f"{file} has no column {column!r} (config.task.column). {suggest(column.upper(), names)}")
    raise DataError(
        f"{file} is not CoNLL-U, so its columns have no names, and config.task.column is {column!r}. Give the column's number, from 1, or from "
        "the end: -1 is the last."
    )


def _is_word(columns: list[str], form: Form, word: int, tag: int, where: str) -> bool:
    """Check whether a line holds a word, not a multi-word token or empty node of CoNLL-U; raise like `read_columns`."""
    divided = "tabs" if form.tabs else "spaces"
    if form.names and (len(columns) != len(form.names) or not _NUMBER.fullmatch(columns[0])):
        raise DataError(
            f"{where} has {len(columns)} columns, divided by tabs, the first {columns[0]!r}: a line of this CoNLL-U file has "
            f"{len(form.names)}, the first a number. Fix it."
        )
    if form.names and not columns[0].isdecimal():
        return False
    if len(columns) < 2:
        raise DataError(
            f"{where} has one column, {columns[0]!r}, divided by {divided}: a line has a word first and its tag last. Fix it, or give "
            "records (.jsonl, .csv, .parquet)."
        )
    if not -len(columns) <= tag < len(columns) or tag in (word, word - len(columns)):
        raise DataError(
            f"{where} has {len(columns)} columns, divided by {divided}, and number {word + 1} is the word: it lacks the tag column that "
            "config.task.column names. Fix the line, or the setting."
        )
    for name, value in (("word", columns[word]), ("tag", columns[tag])):
        if not value.strip(" "):
            raise DataError(f"{where} has no {name}: its column is empty. Fix it.")
    return True
