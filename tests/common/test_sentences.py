"""Sentences: what splits, what does not, and nothing lost."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from lm_research.common import sentences as sentences_module
from lm_research.common.sentences import split_documents, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said, "Go." She went.', ['He said, "Go."', "She went."]),
        ('"Stop!" he cried. "Why?" (Nobody knew.) End.', ['"Stop!" he cried.', '"Why?"', "(Nobody knew.)", "End."]),
        ("Mr. Smith met Dr. J. R. Jones of the U.S. Army.", ["Mr. Smith met Dr. J. R. Jones of the U.S. Army."]),
        ("Some, e.g. Cats, sleep. It costs 3.14 today.", ["Some, e.g. Cats, sleep.", "It costs 3.14 today."]),
        ("See No. 5 and p. 7. He said no. Then he left.", ["See No. 5 and p. 7.", "He said no.", "Then he left."]),
        ("1. First item. 2. Second item.", ["1. First item.", "2. Second item."]),
        ("It was 1999. Then came 2000.", ["It was 1999.", "Then came 2000."]),
        ("It is I. Who is it?", ["It is I.", "Who is it?"]),
        ("Well... maybe. Wait... What?!", ["Well... maybe.", "Wait...", "What?!"]),
        ("今日は晴れ。明日は？「雨だ。」そうか！", ["今日は晴れ。", "明日は？", "「雨だ。」", "そうか！"]),
        ("a\nline  break\n\nis a space. Yes.\n", ["a line break is a space.", "Yes."]),
        ("Prof. Smith left.", ["Prof. Smith left."]),
        (
            "See the Messrs. Smith, the Xmessrs. Smith, the Xxmessrs. Smith.",
            ["See the Messrs. Smith, the Xmessrs.", "Smith, the Xxmessrs.", "Smith."],
        ),
        ("See (No. 5) here.", ["See (No. 5) here."]),
        ("He said (No. Then he left).", ["He said (No.", "Then he left)."]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_rules(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_newlines_end_sentences_when_kept() -> None:
    text = "To be,\nor not. To  be. \n\n  That"
    assert split_sentences(text, keep_newlines=True) == ["To be,\n", "or not.", " To  be. \n", "\n", "  That"]


# Rules and their edge cases; each text of the following tests is a random row of these.
ATOMS = [
    "Mr", ".", "..", "!", "?", "…", " ", " ", "  ", "\n", "a", "A", "I", "No", "5", "12", "(", '"', "'", "”", ")", "]", "«", "。", "！",
    "｡", "」", "e.g", "U.S", "J", "word", "Word", "longerwords", "\t", "\u2028", "\r", "é", "É", "st", " . ", "(3", "\\", "\x85", "中",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(ATOMS, k=draw.randrange(40))) for _ in range(count)]


def by_document(texts: list[str], keep_newlines: bool) -> list[list[str]]:
    sentences, counts = split_documents(texts, keep_newlines)
    rest = iter(sentences)
    documents = [list(itertools.islice(rest, count)) for count in counts]
    assert next(rest, None) is None
    return documents


def test_kept_text_is_lossless() -> None:
    texts = random_texts(3000)
    for text, sentences in zip(texts, by_document(texts, True), strict=True):
        assert "".join(sentences) == text
        assert all(sentences) and all("\n" not in sentence[:-1] for sentence in sentences)


def test_folded_text_keeps_every_word() -> None:
    texts = random_texts(3000)
    for text, sentences in zip(texts, by_document(texts, False), strict=True):
        if not any(mark in text for mark in "。！｡"):  # after these a sentence may begin inside a word
            assert [word for sentence in sentences for word in sentence.split()] == text.split()
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(sentence == " ".join(sentence.split()) != "" for sentence in sentences)


class OneByOne:
    """The rules as a regular expression and a few conditions, one candidate at a time."""

    closing = "\"'”’)\\]»」』）】》〉"
    end = re.compile(rf"[.!?…]+[{closing}]*(?=\s)|[。！？｡]+[{closing}]*")
    opening = re.compile(r"\s+[\"'“‘(\[«]*")

    def split(self, text: str, keep_newlines: bool) -> list[str]:
        if keep_newlines:
            lines = re.findall(r"[^\n]*\n|[^\n]+", text)
            return [sentence for line in lines for sentence in self.line(line)]
        return [sentence.strip() for sentence in self.line(" ".join(text.split()))]

    def line(self, line: str) -> list[str]:
        sentences, start = [], 0
        for match in self.end.finditer(line):
            if self.is_end(line, start, match):
                sentences.append(line[start : match.end()])
                start = match.end()
        rest = line[start:]
        if sentences and not rest.strip():
            sentences[-1] += rest
        elif rest:
            sentences.append(rest)
        return sentences

    def is_end(self, line: str, start: int, match: re.Match[str]) -> bool:
        if match[0][0] in "。！？｡":
            return True
        opening = self.opening.match(line, match.end())
        following = line[opening.end() : opening.end() + 1] if opening else ""
        if following.islower():
            return False
        if match[0][0] != "." or match[0].startswith(".."):
            return True
        before = line[max(start, match.start() - 24) : match.start()].split()
        word = before[-1].lstrip("\"'“‘([«") if before else ""
        numbered = word.lower() in sentences_module._BEFORE_NUMBER and following.isdigit()
        if word.lower() in sentences_module._ABBREVIATIONS or numbered:
            return False
        if re.fullmatch(r"(?:[^\W\d_]\.)*[^\W\d_]", word) and word != "I":
            return False
        return not (re.fullmatch(r"\(?\d{1,3}", word) and line[start : match.start()].strip() == word)


@pytest.mark.parametrize("keep_newlines", [False, True])
def test_arrays_agree_with_the_rules(keep_newlines: bool) -> None:
    texts = random_texts(8000)
    expected = [OneByOne().split(text, keep_newlines) for text in texts]
    assert by_document(texts, keep_newlines) == expected
    assert sum(map(len, expected)) > 20_000


def test_no_documents() -> None:
    for keep_newlines in (False, True):
        assert by_document([], keep_newlines) == [] and by_document(["", ""], keep_newlines) == [[], []]
