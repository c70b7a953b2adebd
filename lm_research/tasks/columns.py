"""Files of columns: a word a line, one of its columns the tag, a blank line between sentences.

A file with a tab anywhere is divided at tabs, so that its words may hold spaces; any other at the spaces of ASCII, never at no-break or
ideographic ones, which belong to words. Two forms are known by themselves:

    CoNLL-2003   words in the first column, tags in the last; -DOCSTART- lines are left out
    CoNLL-U      (universaldependencies.org/format.html) ten columns with names, the first a number of the word; comments, multi-word
                 tokens (1-2) and empty nodes (8.1) are left out. CoNLL-U Plus names its columns, ID the first, in its first line.
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
    """Its first line, and a tag for each word."""

    line: int
    words: list[str]
    tags: list[str]


class Form(NamedTuple):
    """How a file is divided, and the names of its columns, none where it is not CoNLL-U."""

    tabs: bool
    names: tuple[str, ...]

    def divide(self, line: str) -> list[str]:
        """The columns of a line; [] of a blank one or, of CoNLL-U, a comment."""
        line = line.removesuffix("\n")
        if not line.strip(" \t") or (self.names and line.startswith("#")):
            return []
        if self.tabs:
            return [column.strip(" ") or column for column in line.split("\t")]
        return [column for column in line.split(" ") if column]


def read_columns(file: SourceFile, column: str) -> Iterator[Sentence]:
    """The sentences of a file.

    Args:
      file: of UTF-8 text.
      column: of the tags, as config.task.column has it.

    Raises:
      DataError: a line lacks the word or the tag, or there is no such column.
    """
    form, sentence = _form_of(file), Sentence(0, [], [])
    word, tag = form.names.index("FORM") if form.names else 0, _place(column, form.names, str(file.path))
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


def _form_of(file: SourceFile) -> Form:
    """What the first line of words, the comments before it, and tabs anywhere tell of a file."""
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
    known = len(columns) == len(names) and "FORM" in names and _NUMBER.fullmatch(columns[0])
    return Form(tabs, names if known else ())


def _place(column: str, names: tuple[str, ...], file: str) -> int:
    """Index of the column of the tags; by default UPOS of CoNLL-U, else the last."""
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
    """Whether a line is of a word, and so neither of a multi-word token nor of an empty node of CoNLL-U; raises as `read_columns`."""
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
            f"{where} has {len(columns)} columns, divided by {divided}, of which number {word + 1} is the word: none is the tag's, as "
            "config.task.column asks for. Fix the line, or the setting."
        )
    for name, value in (("word", columns[word]), ("tag", columns[tag])):
        if not value.strip(" "):
            raise DataError(f"{where} has no {name}: its column is empty. Fix it.")
    return True
