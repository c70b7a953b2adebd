"""Texts given word by word: the ids of running text. Expected ids by transformers, see word_goldens/make_goldens.py."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from helpers.hf_folders import files_of, write_folder
from lm_research.config import TokenizerConfig, resolve
from lm_research.data.encode import encode_documents
from lm_research.tasks.records import Record
from lm_research.tasks.tagging import TaggingReader
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer

GOLDEN = json.loads((pathlib.Path(__file__).parent / "word_goldens" / "words.json").read_text(encoding="utf-8"))
TEXTS = ["One cat. Two dogs! Three", "今日は晴れ。明日は雨。", "No.\nWay.  Out", "x"]
TAGGING = resolve({"task": {"name": "tagging", "train": "f", "text_key": "tokens", "label_key": "tags"}})


def load(folder: pathlib.Path, family: str, settings: dict[str, Any]) -> Tokenizer:
    given = json.loads(files_of(family).get("tokenizer_config.json", b"{}"))
    return load_tokenizer(write_folder(folder, family, tokenizer_config__json={**given, **settings}))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: " ".join([case["family"], *case["settings"]]))
def test_tagging_reads_the_ids_of_running_text(case: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """Those of transformers' is_split_into_words=True, special tokens included; the first piece of a word carries its tag."""
    tokenizer = load(tmp_path, case["family"], case["settings"])
    records = [Record("f", {"tokens": words, "tags": list(map(str, range(len(words))))}) for words in GOLDEN["texts"]]
    rows = TaggingReader(TAGGING).encode(records, list("012345"), tokenizer)
    for row, expected in zip(rows, case["rows"], strict=True):
        assert list(row.ids) == expected["ids"]
        words = expected["words"]
        first = [word is not None and word not in words[:place] for place, word in enumerate(words)]
        assert row.labels == [word if opens else -100 for word, opens in zip(words, first, strict=True)]


def test_a_space_before_words_where_the_tokenizer_puts_none(tmp_path: pathlib.Path) -> None:
    """Llama's kind without a space before a text: running text. Byte-level kinds: the ids with add_prefix_space=True."""
    plain = load(tmp_path / "llama", "llama", {"add_prefix_space": False})
    for words in GOLDEN["texts"]:
        assert sum(plain.encode_words(words), []) == plain.encode(" ".join(words))
    for family in ("gpt2", "roberta"):
        (case,) = (case for case in GOLDEN["cases"] if case["family"] == family)
        plain = load(tmp_path / family, family, {"add_prefix_space": False})
        for words, row in zip(GOLDEN["texts"], case["rows"], strict=True):
            own = [token for token, word in zip(row["ids"], row["words"], strict=True) if word is not None]
            assert sum(plain.encode_words(words), []) == own


def test_a_word_without_a_token_is_unknown(tmp_path: pathlib.Path) -> None:
    """BERT's normalizer removes a zero-width space; the word must still be tagged."""
    tokenizer = load_tokenizer(write_folder(tmp_path, "bert"))
    record = Record("f", {"tokens": ["the", "\u200b", "", "light"], "tags": ["a", "b", "b", "a"]})
    (row,) = TaggingReader(TAGGING).encode([record], ["a", "b"], tokenizer)
    assert [label for label in row.labels if label >= 0] == [0, 1, 1, 0]
    assert [token for token, label in zip(row.ids, row.labels, strict=True) if label == 1] == [tokenizer.unk_id] * 2


def trained(kind: str, folder: pathlib.Path) -> Tokenizer:
    """A vocabulary of ours; "raw": a sentencepiece model that puts a space before a text and keeps all others."""
    if kind == "raw":
        return SentencePieceTokenizer.parse(files_of("llama")["tokenizer.model"], "llama")
    kind, _, lines = kind.partition(" ")
    config = TokenizerConfig(
        type=kind, vocab_size={"wordpiece": 45, "unigram": 295}.get(kind, 310), keep_newlines=bool(lines)
    )
    if kind in ("wordpiece", "byte_bpe"):
        return train_tokenizer(TEXTS * 3, config)
    return SentencePieceTokenizer.train(TEXTS * 3, config, folder / "tokenizer.model")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bpe lines", "wordpiece", "raw"])
def test_our_vocabularies_do_the_same(kind: str, tmp_path: pathlib.Path) -> None:
    """Against the text as it runs, by the same model."""
    tokenizer = trained(kind, tmp_path)
    for words in [*GOLDEN["texts"], ["Two", "dogs", "!"], []]:
        assert sum(tokenizer.encode_words(words), []) == (tokenizer.encode(" ".join(words)) if words else [])


@pytest.mark.parametrize("family", ["raw", "llama", "llama legacy", "gpt2"])
def test_sentences_of_a_document_join_to_its_ids(family: str, tmp_path: pathlib.Path) -> None:
    """Where line breaks are kept, the sentences of a text together have the ids of the text: no space begins a line."""
    text = "God said light. And there was light!\nThe earth was void.\n\nIn the beginning."
    if family == "raw":
        tokenizer = trained("raw", tmp_path)
    else:
        family, _, legacy = family.partition(" ")
        tokenizer = load(tmp_path, family, {"legacy": bool(legacy), "add_prefix_space": True})
    piece = encode_documents([text, "The\nearth", text], tokenizer, keep_newlines=True)
    whole = [tokenizer.encode(one) for one in (text, "The\nearth", text)]
    assert piece.tokens.tolist() == sum(whole, []) and piece.document_lengths.tolist() == [5, 2, 5]
