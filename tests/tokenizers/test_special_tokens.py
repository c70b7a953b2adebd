"""Special tokens around a text, for tokenizers of both kinds."""

from __future__ import annotations

import pathlib

import pytest

from lm_research.config import TokenizerConfig
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.special_tokens import text_ids
from lm_research.tokenizers.tokenizer_training import train_tokenizer

TEXTS = ["the king went over the river", "the queen said that all was good"] * 20


def test_a_plain_tokenizer_ends_texts_and_puts_nothing_before_them(tmp_path: pathlib.Path) -> None:
    tokenizer = SentencePieceTokenizer.train(
        TEXTS, TokenizerConfig(type="bpe", vocab_size=300), tmp_path / "tokenizer.model"
    )
    assert tokenizer.frame == tokenizer.target_frame == ((), (tokenizer.eos_id,))
    assert text_ids(tokenizer, "the king") == tokenizer.encode("the king")


@pytest.mark.parametrize(("kind", "size"), [("wordpiece", 64), ("byte_bpe", 270)])
def test_frame_and_text_equal_calling_the_tokenizer(kind: str, size: int) -> None:
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(type=kind, vocab_size=size))
    head, tail = tokenizer.frame
    whole = tokenizer("the king")["input_ids"][0].tolist()
    assert [*head, *text_ids(tokenizer, "the king"), *tail] == whole
    assert head == (tokenizer.cls_id,) and tail == (tokenizer.sep_id,)


def test_special_tokens_named_in_a_text_count_as_such() -> None:
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(type="wordpiece", vocab_size=64))
    assert text_ids(tokenizer, "[SEP]") == [tokenizer.sep_id] != tokenizer.encode("[SEP]")
