"""Pieces of text that never have to be taken back, and where stop strings stand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from toys import ByteTokenizer

from lm_research.decoding.streaming import TextStream, only_appends, pieces, stop_at

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
def test_characters_come_whole(text: str) -> None:
    found = list(pieces(ByteTokenizer(), iter(text.encode())))
    assert "".join(found) == text
    assert all("\ufffd" not in piece and piece for piece in found)


def test_bytes_that_are_no_text_come_as_they_are_decoded() -> None:
    tokens = [65, 0xE2, 0x82, 66, 0xFF, 0xF0, 0x9F]
    assert "".join(pieces(ByteTokenizer(), iter(tokens))) == ByteTokenizer().decode(tokens)


def test_pieces_come_as_soon_as_they_are_settled() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(token) for token in "aé!".encode()] == ["a", "", "é", "!"]
    assert stream.end() == ""


def test_text_that_is_tidied_up_later_waits() -> None:
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
