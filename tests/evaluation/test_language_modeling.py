"""Perplexity and bits per byte of a causal model, from its logits by hand."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers import tiny
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.models.definition import define
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer

TEXTS = ["the river flows to the sea", "a stone lies in the river at night, and water flows", "bread"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """16 positions, and a vocabulary of bytes and a few merges."""
    folder = tmp_path_factory.mktemp("causal")
    section = resolve({"tokenizer": {"type": "byte_bpe", "vocab_size": 270}}).tokenizer
    train_tokenizer(iter(TEXTS * 20), section).save_files(folder)
    plain = tiny.model("gpt2")
    definition = define(plain.arch.replace(vocab_size=270, max_length=16), plain.head)
    params = tiny.random_params(definition, 0, 0.3)
    LanguageModel(definition, params, "gpt2", {}, load_tokenizer(folder)).save_native(folder)
    return folder


def test_bits_per_byte_by_hand(causal: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    """Windows of 16 tokens: the first 16 after the separator, then the rest after as many before as fit."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task = {"name": "texts", "task": "language_modeling", "data": "texts.jsonl"}
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={causal}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main([*given, "--batch_size=2"]) == 0
    lm, nats, tokens = lm_research.from_pretrained(causal), 0.0, 0
    for text in TEXTS:
        ids = [lm.tokenizer.sep_id, *lm.tokenizer.encode_batch([text])[0]]
        tokens += len(ids) - 1
        for place in range(1, len(ids), 16):
            end = min(place + 16, len(ids))
            read = ids[max(0, end - 17) : end - 1]
            logits_LV = np.asarray(lm(input_ids=[read + [0] * (16 - len(read))])["logits"], np.float64)[0]
            for asked in range(place, end):
                row = logits_LV[asked - max(0, end - 17) - 1]
                nats -= row[ids[asked]] - np.log(np.exp(row).sum())
    assert tokens > 16
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["texts"]["scores"]
    size, words = sum(map(len, TEXTS)), sum(len(text.split()) for text in TEXTS)
    assert scores["bits_per_byte"]["mean"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert scores["perplexity"]["mean"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert scores["word_perplexity"]["mean"] == pytest.approx(math.exp(nats / words), rel=1e-3)
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": " "}\n')
    assert evaluate.main([*given[:2], f"--output={tmp_path}/other"]) == 2
    assert "texts.jsonl, line 2 has an empty text in field 'text'" in capsys.readouterr().err


def test_minimal_pairs_of_a_causal_model(causal: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each sentence's log-likelihood after the separator between documents."""
    pair = {"sentence_good": "the river", "sentence_bad": "river the"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    task = {"name": "pairs", "task": "minimal_pairs", "data": "pairs.jsonl"}
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={causal}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main(given) == 0
    lm, expected = lm_research.from_pretrained(causal), {}
    for side, text in pair.items():
        ids = [lm.tokenizer.sep_id, *lm.tokenizer.encode_batch([text])[0]]
        logits_LV = np.asarray(lm(input_ids=[ids[:-1] + [0] * (17 - len(ids))])["logits"], np.float64)[0]
        log_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
        expected[side] = sum(log_LV[place - 1, ids[place]] for place in range(1, len(ids)))
    row = json.loads((tmp_path / "out" / "pairs" / "predictions.jsonl").read_text())
    assert row["good_nats"] == pytest.approx(expected["sentence_good"], abs=1e-4)
    assert row["bad_nats"] == pytest.approx(expected["sentence_bad"], abs=1e-4)
