"""Pieces of text that never have to be retracted, and the positions of stop strings."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from helpers.toys import ByteTokenizer
from lm_research.decoding.streaming import TextStream, continuation, offsets, only_appends, pieces, stop_at

TEXTS = ["plain words", "naïve café", "日本語のテキスト", "🙂👩‍👩‍👧 mixed é🙂", "", "\n\n a\t"]


class TidyTokenizer:
    """Words, whose text loses the space before a full stop, as WordPiece's does."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.words += [word for word in text.split() if word not in self.words]
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        text = " ".join(self.words[token] for token in ids)
        return text.replace(" .", ".").replace(" ,", ",").replace(" n ' t", "n't")


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_emitted_whole(text: str) -> None:
    found = list(pieces(ByteTokenizer(), iter(text.encode())))
    assert "".join(found) == text
    assert all("\ufffd" not in piece and piece for piece in found)


def test_bytes_that_are_not_text_are_emitted_as_decoded() -> None:
    tokens = [65, 0xE2, 0x82, 66, 0xFF, 0xF0, 0x9F]
    assert "".join(pieces(ByteTokenizer(), iter(tokens))) == ByteTokenizer().decode(tokens)


def test_pieces_are_emitted_as_soon_as_they_are_final() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(token) for token in "aé!".encode()] == ["a", "", "é", "!"]
    assert stream.end() == ""


def test_text_that_cleanup_may_change_waits() -> None:
    tokenizer = TidyTokenizer()
    ids = tokenizer.encode("we do n ' t know , he said . so it is n ' t")
    assert not only_appends(tokenizer) and only_appends(ByteTokenizer())
    found = list(pieces(tokenizer, iter(ids)))
    assert "".join(found) == tokenizer.decode(ids) and len(found) > 3


def test_stop_strings_are_found_at_their_last_token() -> None:
    tokenizer, tokens = ByteTokenizer(), list("one. two. é".encode())
    assert stop_at(tokenizer, tokens, ["."]) == 4
    assert stop_at(tokenizer, tokens, ["two", ". t"]) == 6
    assert stop_at(tokenizer, tokens, ["é"]) == len(tokens)
    assert stop_at(tokenizer, tokens, ["three"]) is None
    assert stop_at(tokenizer, tokens, []) is None


class SpacedTokenizer:
    """Words carry the space before them, which is left out where a text begins, as in sentencepiece's."""

    PIECES = (" of", " God", "s", "", "!")

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.PIECES[token] for token in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("before", "tokens", "text"),
    [
        ([1], [0, 1, 2], " of Gods"),  # God| of Gods
        ([1], [2, 4], "s!"),
        ([], [0, 1], "of God"),
        ([3], [0, 1], "of God"),  # special tokens are not text
        ([0, 1, 0, 1, 0, 1], [0], " of"),
        ([1], [], ""),
    ],
)
def test_a_space_after_a_prompt_is_kept(before: list[int], tokens: list[int], text: str) -> None:
    tokenizer = SpacedTokenizer()
    assert continuation(tokenizer, before, tokens) == text
    assert "".join(pieces(tokenizer, iter(tokens), before)) == text
    assert stop_at(tokenizer, tokens, [" of"], before) == (1 if text.startswith(" of") else None)


def test_a_prompt_that_ends_inside_a_character_is_continued() -> None:
    euro = "€".encode()
    assert (
        continuation(ByteTokenizer(), [97, *euro[:2]], [euro[2], 98]) == "\ufffdb"
    )  # the last byte alone is not a character


def test_offsets_count_characters_of_whole_texts_whatever_their_length() -> None:
    """A byte a token: all bytes of a character begin where it does, and pieces measured together end between characters."""
    text = "a€b" * 40 + "é"
    expected = [place for place, character in enumerate(text) for _ in character.encode()]
    assert offsets(ByteTokenizer(), list(text.encode())) == expected
