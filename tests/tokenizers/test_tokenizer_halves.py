"""Unpaired surrogates in texts are read as question marks at every entry point of every tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.hf_folders import files_of, goldens
from helpers.opus_folder import files
from lm_research.config import resolve
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.loading import tokenizer_from_files
from lm_research.tokenizers.tokenizer_training import train_tokenizer
from lm_research.tokenizers.windows import windows

FAMILIES = tuple(goldens()["families"])
HALVES = ["\ud800", "the \udfff old\udc80\ud83d river", "plain", ""]
MARKS = ["?", "the ? old?? river", "plain", ""]  # one each, so that places in a text stay
TRAINED = ("unigram", "bpe", "wordpiece", "byte_bpe")


def make(name: str) -> Any:
    if name == "marian":
        return tokenizer_from_files(files(), name)
    if name in FAMILIES:
        return tokenizer_from_files(files_of(name), name)
    size = {"wordpiece": 64, "byte_bpe": 297}.get(name, 290)
    section = resolve({"tokenizer": {"type": name, "vocab_size": size}}).tokenizer
    return train_tokenizer(
        iter(["the old river and the \ud800 bread? a queen visits the river, he said\n"] * 20), section
    )


@pytest.mark.parametrize("name", [*FAMILIES, "marian", *TRAINED])
def test_they_are_read_as_question_marks(name: str) -> None:
    tokenizer = make(name)
    for method in ("encode_batch", "encode_after", "encode_words", "encode_targets"):
        assert getattr(tokenizer, method)(HALVES) == getattr(tokenizer, method)(MARKS), method
    for found, expected in zip(tokenizer.encode_flat(HALVES), tokenizer.encode_flat(MARKS), strict=True):
        assert np.array_equal(found, expected)
    assert tokenizer.encode(HALVES[1]) == tokenizer.encode(MARKS[1])
    assert tokenizer.token_id("\ud800") is None
    if not isinstance(tokenizer, HFTokenizer):
        return
    calls: list[dict[str, Any]] = [
        {"text": HALVES},
        {"text": HALVES, "max_length": 7, "truncation": True},
        {"text_target": HALVES},
    ]
    if name != "marian":
        calls += [{"text": HALVES, "text_pair": HALVES[::-1]}, {"text": HALVES, "return_offsets": True}]
    for call in calls:
        found = tokenizer(**call, padding=True)
        marked = {
            key: {id(HALVES): MARKS}.get(id(value), MARKS[::-1] if key == "text_pair" else value)
            for key, value in call.items()
        }
        expected = tokenizer(**marked, padding=True)
        assert {key: value.tolist() for key, value in found.items()} == {
            key: value.tolist() for key, value in expected.items()
        }


def test_windows_of_contexts() -> None:
    tokenizer = make("bert")

    def read(texts):
        return [window.ids.tolist() for (window,) in windows(tokenizer, ["plain"] * 2, texts, 30, 0)]

    assert read(HALVES[:2]) == read(MARKS[:2])
