"""Documents to pieces of a store, against one sentence at a time."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from helpers.hf_folders import write_folder
from lm_research.common.sentences import split_sentences
from lm_research.config import TokenizerConfig
from lm_research.data.encode import encode_documents
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer

TEXTS = ["One cat. Two dogs! Three", "", "今日は晴れ。明日は雨。", "\n \n", "No.\nWay.  Out", "x"]


def by_sentence(texts: list[str], tokenizer: Tokenizer, gap: str, keep_newlines: bool) -> list[list[list[int]]]:
    documents = []
    for text in texts:
        sentences = split_sentences(text, keep_newlines)
        ids = [tokenizer.encode(gap * (number > 0) + sentence) for number, sentence in enumerate(sentences)]
        documents.append([sentence for sentence in ids if sentence])
    return [document for document in documents if document]


@pytest.mark.parametrize("keep_newlines", [False, True])
@pytest.mark.parametrize(("kind", "gap"), [("wordpiece", ""), ("byte_bpe", " ")])
def test_same_as_one_sentence_at_a_time(kind: str, gap: str, keep_newlines: bool) -> None:
    config = TokenizerConfig(type=kind, vocab_size={"wordpiece": 45, "byte_bpe": 265}[kind])
    tokenizer = train_tokenizer(TEXTS * 3, config)
    expected = by_sentence(TEXTS, tokenizer, "" if keep_newlines else gap, keep_newlines)
    piece = encode_documents(TEXTS, tokenizer, keep_newlines, source=2)
    assert piece.tokens.tolist() == [token for document in expected for sentence in document for token in sentence]
    assert piece.sentence_lengths.tolist() == [len(sentence) for document in expected for sentence in document]
    assert piece.document_lengths.tolist() == [len(document) for document in expected]
    assert piece.source == 2 and (piece.sentence_lengths > 0).all()
    if kind == "wordpiece" and keep_newlines:  # which has no token for line breaks
        assert len(piece.document_lengths) < len(TEXTS)


@pytest.mark.parametrize("keep_newlines", [False, True])
def test_sentencepiece_does_the_same(keep_newlines: bool, tmp_path: pathlib.Path) -> None:
    """The tokenizer restores spaces; a text with sentencepiece's own space symbol takes another path to its ids."""
    texts = [*TEXTS, "a▁b. Two"]
    config = TokenizerConfig(type="bpe", vocab_size=310, keep_newlines=keep_newlines)
    tokenizer = SentencePieceTokenizer.train(TEXTS * 3, config, tmp_path / "tokenizer.model")
    expected = by_sentence(texts, tokenizer, "", keep_newlines)
    piece = encode_documents(texts, tokenizer, keep_newlines)
    assert piece.tokens.dtype == np.int32
    assert piece.tokens.tolist() == [token for document in expected for sentence in document for token in sentence]
    assert piece.sentence_lengths.tolist() == [len(sentence) for document in expected for sentence in document]


def test_nothing() -> None:
    tokenizer = train_tokenizer(TEXTS * 3, TokenizerConfig(type="byte_bpe", vocab_size=265))
    for texts in ([], ["", " "]):
        piece = encode_documents(texts, tokenizer, False)
        assert not any(map(len, piece[:3]))


def test_published_tokenizer(tmp_path: pathlib.Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "model", "gpt2"))
    piece = encode_documents(["One cat. Two dogs!"], tokenizer, False)
    assert tokenizer.decode(np.asarray(piece.tokens)) == "One cat. Two dogs!"
