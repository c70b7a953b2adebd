"""Which documents are trained on, from facts about them only: every count, message and borderline by hand."""

from __future__ import annotations

import hashlib
import pathlib
import types
from typing import Any

import numpy as np
import pytest

from lm_research.config import Config, resolve
from lm_research.data import ingest, tokenize_shards
from lm_research.data.cleaning import REASONS, scrub
from lm_research.data.ingest import DocumentSpool, DocumentStats, write_shard
from lm_research.data.split import DROPPED, PARTS, TRAIN, VALIDATION, assign_splits
from lm_research.data.stateless_rng import example_keys, uniform
from lm_research.errors import DataError


def spool(source: str, texts: str, skipped: int = 0) -> Any:
    """A letter is a document whose length is its place in the alphabet; "-" is an empty one, "<" one that is too short."""
    reasons = [REASONS.index({"-": "empty", "<": "short"}.get(letter, "kept")) for letter in texts]
    lengths = [0 if letter == "-" else 1 if letter == "<" else ord(letter) - 96 for letter in texts]
    stats = DocumentStats(
        np.array(reasons, np.uint8), np.array(lengths), np.array([[ord(letter), 7] for letter in texts], np.uint64),
        np.zeros((len(texts), 0), np.uint32), np.array([range(len(scrub.KINDS)), range(len(scrub.KINDS))]), np.array([2, len(texts) - 2]),
    )  # fmt: skip
    return types.SimpleNamespace(source=source, num_skipped=skipped, stats=lambda: stats, shards=[])


def config(fraction: float = 0.3) -> Config:
    return resolve({"data": {"validation_fraction": fraction}})


def held(kept: list[int], fraction: float) -> set[int]:
    """Documents whose draw is below the fraction; the lowest draw always, the highest never."""
    draws = dict(zip(kept, uniform(example_keys(0, "validation", 0, np.array(kept)), 1)[:, 0], strict=True))
    chosen = {number for number in kept if draws[number] < fraction} | {min(draws, key=draws.__getitem__)}
    return chosen - {max(draws, key=draws.__getitem__)}


@pytest.mark.parametrize("fraction", [0.0001, 0.3, 0.9])
def test_two_sources(fraction: float) -> None:
    """The second a of the first source and both a and c of the second occurred before, wherever that was."""
    lines: list[str] = []
    choices = assign_splits(
        [spool("one", "abc-adefg"), spool("two", "ah<cijkl", skipped=3)], None, config(fraction), lines.append
    )
    dropped, kept = ([3, 4], [0, 2, 3]), ([0, 1, 2, 5, 6, 7, 8], [1, 4, 5, 6, 7])
    for choice, left_out, rest in zip(choices, dropped, kept, strict=True):
        validation = held(rest, fraction)
        expected = [
            DROPPED if n in left_out else VALIDATION if n in validation else TRAIN for n in range(len(choice.parts_D))
        ]
        assert choice.parts_D.tolist() == expected and choice.parts_D.dtype == np.uint8
        assert choice.of_shard(0).tolist() == expected[:2] and choice.of_shard(1).tolist() == expected[2:]
    counts = {name: 0 for name in REASONS[1:]}
    scrubbed = {name: 2 * number for number, name in enumerate(scrub.KINDS)}
    assert choices[0].report == {
        "source": "one", "documents": 9, "characters": 1 + 2 + 3 + 0 + 1 + 4 + 5 + 6 + 7, "dropped_characters": 1, "unreadable": 0,
        "dropped": {**counts, "exact_duplicate": 1, "empty": 1}, "scrubbed": scrubbed,
    }  # fmt: skip
    assert choices[1].report == {
        "source": "two", "documents": 8, "characters": 1 + 8 + 1 + 3 + 9 + 10 + 11 + 12, "dropped_characters": 1 + 1 + 3, "unreadable": 3,
        "dropped": {**counts, "exact_duplicate": 2, "short": 1}, "scrubbed": scrubbed,
    }  # fmt: skip
    assert lines[:2] == [
        "Warning: one: left out 1 documents that occurred before and 1 empty ones.",
        "Warning: two: left out 2 documents that occurred before, 0 empty ones and 1 too short.",
    ]
    out = len(held(kept[0], fraction)) + len(held(kept[1], fraction))
    assert lines[2:] == [f"Split: {12 - out} documents to train on, {out} held out."]
    assert (TRAIN, VALIDATION, PARTS) == (0, 1, ("train", "validation"))


def test_a_source_without_repeats_gives_no_warning() -> None:
    lines: list[str] = []
    (choice,) = assign_splits([spool("one", "ab")], None, config(), lines.append)
    assert sorted(choice.parts_D.tolist()) == [TRAIN, VALIDATION] and lines == [
        "Split: 1 documents to train on, 1 held out."
    ]


def test_holding_out_one_of_a_few_long_documents_is_a_warning() -> None:
    """Of files without blank lines each is one document, of which one is held out at least."""
    lines: list[str] = []
    few = spool("few", "abcdef")
    few.stats().characters_D[:] = 2_000_000
    assign_splits([few], None, config(0.01), lines.append)
    assert lines[0].startswith("Warning: few: 17% of the text is held out, instead of data.validation_fraction=0.01")
    assert "there are 6." in lines[0] and len(lines) == 2
    assign_splits([few], None, config(0.1), lines.append)
    few.stats().characters_D[:] = 1_000_000
    assign_splits([few], None, config(0.01), lines.append)
    assert len(lines) == 4


def test_a_validation_source() -> None:
    """It comes last, all of it is held out, and its documents are removed from the others."""
    lines: list[str] = []
    train, validation = assign_splits([spool("one", "abca")], spool("held", "bx-"), config(), lines.append)
    assert train.parts_D.tolist() == [TRAIN, DROPPED, TRAIN, DROPPED]
    assert (validation.spool.source, validation.parts_D.tolist()) == ("held", [VALIDATION, VALIDATION, DROPPED])
    assert lines[-1] == "Split: 2 documents to train on, 2 held out."
    several = assign_splits([spool("one", "ab"), spool("two", "bc")], spool("held", "ab"), config(), lines.append)
    assert [choice.parts_D.tolist() for choice in several] == [[DROPPED] * 2, [DROPPED, TRAIN], [VALIDATION] * 2]
    with pytest.raises(
        DataError, match="No document of one is left to train on: .*or also in config.data.validation_source=held"
    ):
        assign_splits([spool("one", "ab")], spool("held", "bac"), config(), lines.append)


@pytest.mark.parametrize(("one", "other"), [("--", None), ("<-", None), ("ab", "--")])
def test_nothing_is_kept(one: str, other: str | None) -> None:
    texts = other or one
    found = {name: sum(letter == sign for letter in texts) for name, sign in (("empty", "-"), ("short", "<"))}
    words = ", ".join(f"{name} {found[name]}" for name in REASONS if found.get(name))
    name = "held" if other else "one"
    with pytest.raises(
        DataError, match=rf"The corpus {name} is empty: none of its 2 documents .*\(left out: {words}\)"
    ):
        assign_splits([spool("one", one)], spool("held", other) if other else None, config(), print)


@pytest.mark.parametrize(("fraction", "count"), [(0.0001, 1), (0.3, 1), (0.5, 2), (0.9, 3)])
def test_one_document_is_cut(fraction: float, count: int, tmp_path: pathlib.Path) -> None:
    """Of four sentences 0, 1.2, 2 and 3.6, to the nearest, are held out: the last ones, at least one and not all. It begins a shard."""
    sentences, lines = ["One is here.", "Two is there.", "Three came.", "Four left."], []
    one = written(tmp_path, ["", ""], [" ".join(sentences), " "])
    (choice,) = assign_splits([one], None, config(fraction), lines.append)
    assert choice.spool.documents(0) == [" ".join(sentences[:-count]), " ".join(sentences[-count:])]
    assert choice.parts_D.tolist() == choice.of_shard(0).tolist() == [TRAIN, VALIDATION]
    assert choice.spool.stats().reasons_D.tolist() == [0, 0] and choice.report["documents"] == 4
    assert (
        lines[1]
        == f"one is one document: its first {4 - count} sentences are for training, its last {count} are held out."
    )
    assert lines[2] == "Split: 1 documents to train on, 1 held out."


def test_one_document_with_its_newlines(tmp_path: pathlib.Path) -> None:
    text = "One is here.\nTwo is there.\n\nThree came."
    kept = resolve({"data": {"validation_fraction": 0.3}, "tokenizer": {"keep_newlines": True}})
    (choice,) = assign_splits([written(tmp_path, ["", ""], [text])], None, kept, print)
    assert "".join(choice.spool.documents(0)) == text and choice.spool.documents(0)[1] == "Three came."


def test_one_sentence_cannot_be_cut(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="The corpus one is too small: one document of one sentence"):
        assign_splits([written(tmp_path, ["", ""], ["One is here."])], None, config(), print)
    two = written(tmp_path, ["", ""], ["One is here. Two is there."])
    assert assign_splits([two], None, config(), print)[0].spool.documents(0) == ["One is here.", "Two is there."]


def written(folder: pathlib.Path, *shards: list[str]) -> DocumentSpool:
    """A spool on disk; texts of only spaces are empty."""
    paths = [folder / f"{number}.npz" for number in range(len(shards))]
    for path, texts in zip(paths, shards, strict=True):
        write_shard(path, texts, [REASONS.index("kept" if text.strip() else "empty") for text in texts])
    return DocumentSpool("one", paths, "", 0)


def test_shards_end_once_they_hold_more_characters_than_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each document of four characters counts five, with the one that separates it: two make 10, three 15."""
    monkeypatch.setattr(ingest, "SHARD_CHARACTERS", 10)
    assert list(ingest._shards(["abcd"] * 7)) == [["abcd"] * 3, ["abcd"] * 3, ["abcd"]]
    assert list(ingest._shards(["a" * 9, "b", "c"])) == [["a" * 9, "b"], ["c"]] and list(ingest._shards([])) == []


def test_what_a_shard_holds(tmp_path: pathlib.Path) -> None:
    write_shard(tmp_path / "a.npz", ["aé", "b"], [REASONS.index("kept"), 1])
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["reasons_D"].dtype == np.uint8 and arrays["characters_D"].tolist() == [2, 1]
        assert arrays["text"].tobytes().decode() == "aéb" and arrays["ends"].tolist() == [2, 3]
        assert arrays["digests_D"][1].tobytes() == hashlib.blake2b(b"b", digest_size=16).digest()
        assert arrays["scrubbed"].tolist() == [[0] * len(scrub.KINDS)] and arrays["shard_sizes"].tolist() == [2]
        assert arrays["signatures_DK"].shape == (2, 0)


def test_shards_that_are_finished_count_as_progress(tmp_path: pathlib.Path) -> None:
    """Of three shards the second is there."""
    (tmp_path / "000-000001.npz").touch()
    assignment = types.SimpleNamespace(
        spool=types.SimpleNamespace(shards=["a", "b", "c"]), of_shard=lambda shard: shard
    )
    done: list[int] = []
    begun: list[str] = []

    def run(function: Any, tasks: Any, advance: Any) -> None:
        for task in tasks:
            begun.append(task.path.name)
            advance(None)

    runner = types.SimpleNamespace(run=run)
    found = tokenize_shards.tokenize_shards([assignment], tmp_path, tmp_path, False, runner, done.append)
    assert begun == ["000-000000.npz", "000-000002.npz"] and done == [1, 1, 1]
    assert [(path.name, source) for path, source in found.shards] == [(f"000-00000{i}.npz", 0) for i in range(3)]
