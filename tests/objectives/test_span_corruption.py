"""Spans after sentinels: the paper's own example, its numbers, and the reconstructed text.

Legend: P texts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError, TokenizerError
from lm_research.objectives import OBJECTIVES, define
from lm_research.objectives.span_corruption import (
    compose,
    corrupt,
    count_spans,
    find_sentinels,
    source_target_sizes,
    window_length,
)

RATE, MEAN = 0.15, 3.0
BIG = 1000  # ids of the larger vocabulary


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return tiny.store(tmp_path_factory.mktemp("store"), tiny.documents(0, 300, (5, 30), (5, 12)), BIG)


def test_the_papers_example() -> None:
    """Raffel et al. 2019, figure 2: 2 words kept, 2 gone, 4 kept, 1 gone.

    The figure's text continues with two more kept words; a text of this objective ends with a span, as the authors' code has
    it, and where the figure's target ends with a third sentinel both sides end with the end token.
    """
    text = "Thank you for inviting me to your party last".split()
    ids = {word: 10 + number for number, word in enumerate(text)}
    tokens = np.array([ids[word] for word in text], np.int32)
    x, y, eos = 60, 59, 3
    sources, targets = corrupt(
        tokens, np.array([0]), np.array([[2, 4]]), np.array([[2, 1]]), np.array([2]), np.array([x, y, 58]), eos
    )
    assert sources.tokens.tolist() == [ids["Thank"], ids["you"], x, *(ids[word] for word in text[4:8]), y, eos]
    assert targets.tokens.tolist() == [x, ids["for"], ids["inviting"], y, ids["last"], eos]
    assert (sources.lengths.tolist(), targets.lengths.tolist()) == ([9], [6])


def test_two_texts_of_different_numbers_of_spans_do_not_mix() -> None:
    tokens = np.arange(10, 20, dtype=np.int32)  # 10..15 and 16..19
    kept, noise = np.array([[1, 2], [3, 0]]), np.array([[2, 1], [1, 0]])
    sources, targets = corrupt(tokens, np.array([0, 6]), kept, noise, np.array([2, 1]), np.array([60, 59]), 3)
    assert sources.tokens.tolist() == [10, 60, 13, 14, 59, 3, 16, 17, 18, 60, 3]
    assert targets.tokens.tolist() == [60, 11, 12, 59, 15, 3, 60, 19, 3]


def test_568_tokens_fill_512_and_114() -> None:
    # 568 * 0.15 = 85.2 -> 85 tokens in 85 / 3 = 28.3 -> 28 spans. Source: 568 - 85 + 28 + 1 = 512. Target: 85 + 28 + 1 = 114.
    assert window_length(512, RATE, MEAN) == 568
    assert source_target_sizes(np.array([568]), RATE, MEAN).tolist() == [[512, 114]]


def test_rows_of_the_papers_length_are_full(store: TokenStore) -> None:
    config = few.setting("span_corruption", model=dict(max_length=512), data=dict(max_length=512))
    batch = few.epoch(few.examples(config, store, few.Words(BIG, sentinels=100)))
    assert batch["source_tokens_BS"].shape[1] == 512 and batch["targets_BL"].shape[1] == 114
    assert (batch["source_segments_BS"] == 1).all() and (batch["weights_BL"] == 1).all()


def restored(source: np.ndarray, target: np.ndarray, sentinels: np.ndarray) -> list[int]:
    """Restore the text by putting the target's tokens after each sentinel in its place in the source."""
    said: dict[int, list[int]] = {}
    for token in target.tolist():
        if token in sentinels:
            said[token] = current = []
        else:
            current.append(token)
    return [word for token in source.tolist() for word in said.get(token, [token])]


@pytest.mark.parametrize("packing", [False, True])
def test_source_and_target_restore_the_text(store: TokenStore, packing: bool) -> None:
    config = few.setting("span_corruption", data=dict(max_length=64, packing=packing))
    tokenizer = few.Words(BIG, sentinels=20)
    rows = few.examples(config, store, tokenizer, "validation")
    batch = few.epoch(rows)
    sentinels = find_sentinels(tokenizer, 20)
    texts = []
    for b in range(rows.num_examples):
        for number in range(1, batch["segments_BL"][b].max() + 1):
            source = batch["source_tokens_BS"][b][batch["source_segments_BS"][b] == number]
            target = batch["targets_BL"][b][batch["segments_BL"][b] == number]
            assert source[-1] == target[-1] == few.EOS and target[0] == sentinels[0]
            marks = [token for token in target.tolist() if token in sentinels]
            assert (
                marks == [token for token in source.tolist() if token in sentinels] == sentinels[: len(marks)].tolist()
            )
            texts.append(restored(source[:-1], target[:-1], sentinels))
    if not packing:
        assert [token for text in texts for token in text] == store.tokens.tolist()
        return
    # Packed rows come in another order, and hold each document's pieces.
    pieces = [store.tokens[a : a + n].tolist() for a, n in zip(*rows.pieces, strict=True)]
    assert sorted(texts) == sorted(pieces)


def test_training_reads_the_text_as_a_ring_that_each_epoch_cuts_elsewhere(store: TokenStore) -> None:
    config = few.setting("span_corruption", data=dict(max_length=64))
    tokenizer = few.Words(BIG, sentinels=20)
    rows = few.examples(config, store, tokenizer)
    sentinels, firsts = find_sentinels(tokenizer, 20), []
    for number in (0, 1):
        batch = few.epoch(rows, number)
        text = []
        for b in range(rows.num_examples):
            target = batch["targets_BL"][b][batch["weights_BL"][b] > 0]
            text += restored(batch["source_tokens_BS"][b][:-1], target[:-1], sentinels)
        ring = np.concatenate([store.tokens, store.tokens[: 2 * rows.window]])
        places = [n for n in range(rows.window) if ring[n : n + len(text)].tolist() == text]
        assert len(places) == 1
        firsts += places
    assert firsts[0] != firsts[1]


def test_density_and_lengths_of_spans_are_the_papers(store: TokenStore) -> None:
    config = few.setting("span_corruption", model=dict(max_length=512), data=dict(max_length=512))
    tokenizer = few.Words(BIG, sentinels=100)
    batch = few.epoch(few.examples(config, store, tokenizer))
    sentinels, rows = find_sentinels(tokenizer, 100), len(batch["targets_BL"])
    is_mark_BL = np.isin(batch["targets_BL"], sentinels)
    corrupted = (~is_mark_BL).sum() - rows  # without the end tokens
    assert corrupted / (rows * 568) == pytest.approx(85 / 568) and is_mark_BL.sum() == 28 * rows
    lengths = np.diff(np.flatnonzero(np.append(is_mark_BL[:, :-1], np.ones((rows, 1), bool), axis=1).ravel())) - 1
    # Compositions of 85 into 28: a part is k with probability C(84 - k, 26) / C(84, 27).
    sizes = np.arange(1, 59)
    chances = np.array([math.comb(84 - k, 26) / math.comb(84, 27) for k in sizes])
    assert chances.sum() == pytest.approx(1) and (chances * sizes).sum() == pytest.approx(85 / 28)
    for size in (1, 2, 3, 6):
        count = rows * 28
        spread = 5 * math.sqrt(chances[size - 1] * (1 - chances[size - 1]) / count)
        assert abs((lengths == size).sum() / count - chances[size - 1]) < spread, size


def test_every_composition_is_equally_likely() -> None:
    # 5 into 3 parts: C(4, 2) = 6 ways.
    draws = np.random.default_rng(0).random((6000, 8))
    parts = compose(np.full(6000, 5), np.full(6000, 3), draws)
    assert (parts.sum(1) == 5).all() and parts.min() == 1
    counts = np.unique(parts, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 5 + 5 * math.sqrt(10)
    assert compose(np.array([3, 0]), np.array([2, 1]), draws[:2])[1].tolist() == [0, 0]


def test_compositions_by_hand() -> None:
    """Cuts at the lowest draws, of which those past `total` - 1 do not count; rows with fewer parts end in zeros."""
    draws = np.array([[0.7, 0.2, 0.9, 0.4], [0.3, 0.5, 0.2, 0.1], [0.8, 0.7, 0.6, 0.5]])
    found = compose(np.array([5, 3, 4]), np.array([3, 2, 1]), draws)
    assert found.tolist() == [[2, 2, 1], [1, 2, 0], [4, 0, 0]]
    assert compose(np.array([5]), np.array([1]), draws[:1]).tolist() == [[5]]


@pytest.mark.parametrize(
    ("rate", "mean", "expected"),
    [
        (
            0.15,
            3.0,
            {1: (0, 1), 2: (1, 1), 3: (1, 1), 20: (3, 1), 40: (6, 2)},
        ),  # half a token is none, and one at least is
        (0.9, 3.0, {1: (0, 1), 2: (1, 1), 3: (2, 1), 7: (6, 1), 40: (36, 4)}),  # one token stays before each span
        (0.5, 1.0, {15: (8, 7), 16: (8, 8)}),
    ],
)
def test_numbers_of_tokens_and_spans(rate: float, mean: float, expected: dict[int, tuple[int, int]]) -> None:
    noise, spans = count_spans(np.array([*expected]), rate, mean)
    assert dict(zip(expected, zip(noise.tolist(), spans.tolist(), strict=True), strict=True)) == expected


def test_a_tokenizer_without_sentinels_is_refused(store: TokenStore) -> None:
    config = few.setting("span_corruption")
    with pytest.raises(TokenizerError, match="has none of them"):
        few.examples(config, store, few.Words(BIG))
    config = few.setting("span_corruption", data=dict(max_length=64))
    with pytest.raises(
        TokenizerError, match=r"needs 3 sentinel tokens, .* has 2 of them.*sentinels=3.*shorten the rows"
    ):
        few.examples(config, store, few.Words(BIG, sentinels=2))


def test_targets_longer_than_the_model_are_refused() -> None:
    config = few.setting(
        "span_corruption", "bart", model=dict(max_length=16), objective=dict(mask_rate=0.6, mean_span_length=1.0)
    )
    with pytest.raises(ConfigError, match="the model has 16 positions"):
        define(config, few.VOCAB)
    assert OBJECTIVES["span_corruption"].head(config) == "seq2seq_lm"
    # 15 tokens are the most of which 15 - 8 + 7 + 1 = 15 fit into 16; targets have 8 + 7 + 1 = 16.
    fitting = dict(mask_rate=0.5, mean_span_length=1.0)
    define(few.setting("span_corruption", "bart", model=dict(max_length=16), objective=fitting), few.VOCAB)
