"""Sentences: what splits, what does not, and nothing lost."""

from __future__ import annotations

import itertools
import random

import pytest

from lm_research.data.sentences import split_sentences


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
        ("", []),
        (" \n\t ", []),
    ],
)
def test_rules(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_newlines_end_sentences_when_kept() -> None:
    text = "To be,\nor not. To  be. \n\n  That"
    assert split_sentences(text, keep_newlines=True) == ["To be,\n", "or not.", " To  be. \n", "\n", "  That"]


def test_kept_text_is_lossless() -> None:
    draw = random.Random(0)
    letters = ["a", "B", ".", "!", "?", "。", " ", "  ", "\n", '"', "”", ")", "Mr", "3", "\r", "\t", "\u2028", "é"]
    for _ in range(3000):
        text = "".join(draw.choices(letters, k=draw.randrange(30)))
        sentences = split_sentences(text, keep_newlines=True)
        assert "".join(sentences) == text
        assert all(sentences) and all("\n" not in sentence[:-1] for sentence in sentences)


def test_folded_text_keeps_every_word() -> None:
    draw = random.Random(1)
    for _ in range(1000):
        text = "".join(draw.choices(["Ab", "c", ". ", "! ", "? ", " ", "\n", "3"], k=draw.randrange(30)))
        words = itertools.chain.from_iterable(sentence.split() for sentence in split_sentences(text))
        assert list(words) == text.split()
