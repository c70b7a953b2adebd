"""tokenizer.type=word: ids and counts worked out by hand; WikiText-2's own counts are in tests/experiments/test_results.py."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from lm_research.config import resolve
from lm_research.data.encode import encode_documents
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Frame, Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.run_tokenizer import BEFORE, with_format
from lm_research.tokenizers.tokenizer_training import make_tokenizer, tokenizer_key
from lm_research.tokenizers.word_vocabulary import make_word_tokenizer

# Two lines and an empty one; "b" occurs three times, "a" and "c" twice, "d" once.
TEXT = "a b b c\n\nb <unk> a c d\n"
WORDS = [f"w{number}" for number in range(70)]


def made(text: str = TEXT, **settings: object) -> Tokenizer:
    size = settings.pop("vocab_size", 64)
    config = resolve({"tokenizer": {"type": "word", "vocab_size": size, "keep_newlines": True, **settings}}).tokenizer
    return make_word_tokenizer([text, " ".join(WORDS[:58])], config)


def test_ids_are_in_order_of_frequency() -> None:
    """<unk> and <eos> come first, then b, a, c (equally frequent: by name), and the 59 words that occur once."""
    tokenizer = made()
    assert tokenizer.size == 64 and [tokenizer.token_name(number) for number in range(6)] == [
        *("<unk>", "<eos>", "b", "a", "c", "d"),
    ]
    assert tokenizer.encode(TEXT) == [3, 2, 2, 4, 1, 1, 2, 0, 3, 4, 5, 1]
    assert tokenizer.encode("a zebra b") == [3, 0, 2]


def test_tokens_are_those_of_words_and_lines() -> None:
    """Eight words, <unk> among them as one of nine, and three lines."""
    piece = encode_documents([TEXT], made(), keep_newlines=True)
    assert len(piece.tokens) == len(TEXT.split()) + TEXT.count("\n") == 12
    plain = made(keep_newlines=False)
    assert encode_documents([TEXT], plain, keep_newlines=False).tokens.tolist() == [3, 2, 2, 4, 2, 0, 3, 4, 5]


def test_special_tokens_and_text() -> None:
    tokenizer = made()
    assert (tokenizer.unk_id, tokenizer.eos_id, tokenizer.sep_id, tokenizer.pad_id) == (0, 1, 1, 1)
    assert tokenizer.frame == Frame((), (1,)) and tokenizer.keeps_newlines
    assert tokenizer.decode(tokenizer.encode("b a c")) == "b a c"
    # A word has its letters and one space; special tokens have no text.
    assert tokenizer.token_bytes[:4].tolist() == [0, 0, 2, 2] and tokenizer.starts_word[2:].all()
    np.testing.assert_array_equal(tokenizer(["a b"])["input_ids"], [[3, 2, 1]])
    with pytest.raises(TokenizerError, match="no mask token"):
        tokenizer.mask_id  # noqa: B018
    assert with_format(tokenizer, BEFORE)(["a b"])["input_ids"].tolist() == [[1, 3, 2]]


def test_a_saved_tokenizer_is_the_same(tmp_path: pathlib.Path) -> None:
    config = resolve({"tokenizer": {"type": "word", "vocab_size": 64, "keep_newlines": True}}).tokenizer
    made_here = make_tokenizer([TEXT, " ".join(WORDS)], config, tmp_path, lambda line: None)
    again = load_tokenizer(tmp_path)
    assert again.digest == made_here.digest and again.encode(TEXT) == made_here.encode(TEXT) and again.keeps_newlines


def test_a_given_vocabulary_sets_the_ids(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("c\n<eos>\na\nb\n")
    assert made(vocabulary=str(path)).encode(TEXT) == [2, 3, 3, 0, 1, 1, 3, 4, 2, 0, 4, 1]  # <unk> is added at the end
    config = resolve({"tokenizer": {"type": "word", "vocabulary": str(path)}}).tokenizer
    before = tokenizer_key(config)
    path.write_text("c\na\nb\n")
    assert tokenizer_key(config) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\na\n", "line 3 repeats the word 'a' of line 1"),
        ("a\n\nb\n", "line 2 is ''. Write one word on each line"),
        ("a\nb c\n", "line 2 is 'b c'"),
    ],
)
def test_a_wrong_vocabulary_is_located(content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        made(vocabulary=str(tmp_path / "words.txt"))


def test_too_few_words_are_counted() -> None:
    with pytest.raises(
        TokenizerError, match="it has 62 words and 2 special tokens. Set --config.tokenizer.vocab_size=64"
    ):
        made(vocab_size=65)
    with pytest.raises(TokenizerError, match="no file /nowhere/words.txt. Check config.tokenizer.vocabulary"):
        made(vocabulary="/nowhere/words.txt")
