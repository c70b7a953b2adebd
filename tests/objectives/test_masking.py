"""Which tokens are masked, as single tokens, whole words, n-grams and spans. Bounds are five standard deviations.

Legend: B rows, L length, W words.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.stateless_rng import example_keys
from lm_research.errors import ConfigError
from lm_research.objectives import build_objective
from lm_research.objectives.masking import (
    Masking,
    Words,
    check_masking,
    choose_spans,
    choose_words,
    find_words,
    num_masked,
    span_length_probs,
)

ROWS, L, SIZE = 600, 64, 200
KINDS = ("token", "whole_word", "ngram", "span")


def near(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def mask(kind: str, starts_word: np.ndarray | None = None, **objective: Any) -> dict[str, np.ndarray]:
    """Rows of <s>, random ordinary tokens, </s>, masked; `before_BL` is what they were."""
    config = few.setting("masked_lm", objective=dict(masking=kind, **objective))
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(5, SIZE, (ROWS, L), np.int32)
    tokens_BL[:, 0], tokens_BL[:, -1] = few.BOS, few.EOS
    maskable_BL = np.ones(tokens_BL.shape, bool)
    maskable_BL[:, [0, -1]] = False
    masking = Masking(config.objective, few.Words(SIZE, starts_word=starts_word), L)
    keys_B = example_keys(0, "test", 0, np.arange(ROWS))
    return masking(tokens_BL.copy(), maskable_BL, np.full(ROWS, L), keys_B, 0) | {"before_BL": tokens_BL}


def chosen(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Bool [B, L]: what is predicted; check that targets are the original tokens."""
    row, place = np.nonzero(batch["weights_BM"])
    column = batch["mask_positions_BM"][row, place]
    np.testing.assert_array_equal(batch["targets_BM"][row, place], batch["before_BL"][row, column])
    chosen_BL = np.zeros((ROWS, L), bool)
    chosen_BL[row, column] = True
    assert chosen_BL.sum() == len(row)
    assert (batch["tokens_BL"] == batch["before_BL"])[~chosen_BL].all()
    return chosen_BL


def starting(share: float) -> np.ndarray:
    """Ids from 5 on that begin a word: the first fraction `share` of them, as in a vocabulary whose pieces are sorted by that."""
    return (np.arange(SIZE) >= 5) & (np.arange(SIZE) < 5 + share * (SIZE - 5))


@pytest.mark.parametrize("kind", KINDS)
def test_fate_and_number_of_masked_tokens(kind: str) -> None:
    batch = mask(kind, starting(0.5), mask_rate=0.25, keep_rate=0.2, random_rate=0.3)
    chosen_BL = chosen(batch)
    assert num_masked(L, 0.25) == 16
    counts = chosen_BL.sum(1)
    if kind == "whole_word":  # words beyond the limit are left out
        assert counts.max() == 16 and counts.min() >= 14 and counts.mean() > 15.9
    else:
        assert (counts == 16).all()
    assert not chosen_BL[:, [0, -1]].any()
    now, was = batch["tokens_BL"][chosen_BL], batch["before_BL"][chosen_BL]
    # Tokens of a span share their fate: about as many independent draws as spans, three tokens in each.
    count = len(now) // (3 if kind == "span" else 1)
    assert near((now == few.MASK).mean(), 0.5, count)
    same = 0.2 if kind != "span" else 0.2
    assert near((now == was).mean(), same + 0.3 / (SIZE - 5), count)
    strange = now[(now != few.MASK) & (now != was)]
    assert strange.min() >= 5 and len(np.unique(strange)) == SIZE - 5


# WordPiece and sentencepiece mark what begins or continues a word; byte-level BPE marks the space before a word,
# so that a row's first piece begins a word without a mark. Both give `starts_word`.
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_words_are_masked_whole(share: float) -> None:
    starts_word = starting(share)
    batch = mask("whole_word", starts_word)
    chosen_BL = chosen(batch)
    words = find_words(
        batch["before_BL"],
        np.ones((1, L), bool) & (np.arange(L) > 0) & (np.arange(L) < L - 1) & np.ones((ROWS, 1), bool),
        starts_word,
    )
    long = 0
    for b in range(ROWS):
        for word in range(int(words.number_BL[b].max()) + 1):
            inside = words.number_BL[b] == word
            assert chosen_BL[b][inside].all() or not chosen_BL[b][inside].any() or chosen_BL[b].sum() == inside.sum()
            long += chosen_BL[b][inside].all() and inside.sum() > 1
    assert long > ROWS


def test_words_begin_where_the_tokenizer_marks_them_and_never_cross_a_special_token() -> None:
    #        <s> the  cat ##s ran </s> ##ly  on  pad
    row = [[2, 10, 11, 30, 12, 3, 31, 13, 0]]
    maskable = np.array([[0, 1, 1, 1, 1, 0, 1, 1, 0]], bool)
    words = find_words(np.array(row), maskable, np.arange(40) < 20)
    assert words.number_BL.tolist() == [[-1, 0, 1, 1, 2, -1, 3, 4, -1]]
    assert words.length_BW.tolist() == [[1, 2, 1, 1, 1]] and words.run_BW.tolist() == [[1, 1, 1, 2, 2]]


def test_text_without_word_boundaries_is_masked_token_by_token() -> None:
    maskable = np.ones((1, 30), bool)
    words = find_words(np.arange(10, 40)[None], maskable, np.zeros(40, bool))
    assert words.length_BW.tolist() == [[1] * 30]
    ten = find_words(np.arange(10, 20)[None], maskable[:, :10], np.zeros(40, bool))
    assert ten.length_BW.tolist() == [[10]]


@pytest.mark.parametrize("runs", [(1, 11), (11, 1), (3, 12, 10)])
def test_only_runs_without_boundaries_are_divided_into_tokens(runs: tuple[int, ...]) -> None:
    """Words of 10 tokens at most are whole; each token of a longer one is a word."""
    ids = [id for run in runs for id in [5, *[6] * (run - 1)]]  # 5 starts a word, 6 continues it
    words = find_words(np.array([ids]), np.ones((1, len(ids)), bool), np.arange(7) == 5)
    assert words.length_BW.tolist() == [[part for run in runs for part in ([run] if run <= 10 else [1] * run)]]


def random_rows(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of which id 5 starts a word and 6 continues one, where special tokens divide them, and which are maskable."""
    draw = np.random.default_rng(rows)
    tokens = draw.choice([5, 6, 6], (rows, 40))
    maskable = (draw.random(tokens.shape) < 0.93) & (np.arange(40) < draw.integers(0, 41, (rows, 1)))
    return tokens, maskable, np.arange(7) == 5


def words_by_loops(tokens_L: np.ndarray, maskable_L: np.ndarray) -> list[tuple[int, list[int]]]:
    """(run, columns) of each word of a row."""
    found, run, before = [], 0, False
    for column, (token, maskable) in enumerate(zip(tokens_L, maskable_L, strict=True)):
        run += maskable and not before
        if maskable and (token == 5 or not before):
            found.append((run, []))
        if maskable:
            found[-1][1].append(column)
        before = maskable
    return [(r, part) for r, word in found for part in ([word] if len(word) <= 10 else [[column] for column in word])]


@pytest.mark.parametrize("kind", ["whole_word", "span"])
def test_choices_match_loops_over_words(kind: str) -> None:
    """Rows with different numbers of words and budgets, from no token to all."""
    tokens, maskable, starts_word = random_rows(60)
    draw = np.random.default_rng(1)
    words = find_words(tokens, maskable, starts_word)
    order = np.where(words.length_BW > 0, draw.random(words.length_BW.shape), np.inf)
    span = draw.integers(1, 5, order.shape)
    budget = draw.integers(0, 1 + maskable.sum(1))
    covered, owner = choose_words(words, order, budget), words.number_BL
    if kind == "span":
        covered, owner = choose_spans(words, order, span, budget)
    for b in range(len(tokens)):
        row, taken, first_of, left = words_by_loops(tokens[b], maskable[b]), [], {}, budget[b]
        assert [len(word) for _, word in row] == words.length_BW[b][: len(row)].tolist()
        assert [run for run, _ in row] == words.run_BW[b][: len(row)].tolist()
        by_order = np.argsort(order[b, : len(row)]).tolist()
        for first in by_order:
            if kind == "whole_word" and len(row[first][1]) <= left:
                taken, left, first_of[first] = taken + row[first][1], left - len(row[first][1]), first
            elif kind == "span" and first not in first_of and len(taken) < budget[b]:
                for word in range(first, min(first + span[b, first], len(row))):
                    if word not in first_of and row[word][0] == row[first][0]:
                        taken, first_of[word] = taken + row[word][1], first
        if row and not taken:  # no word fits
            taken, first_of[by_order[0]] = row[by_order[0]][1], by_order[0]
        assert np.flatnonzero(covered[b]).tolist() == sorted(taken[: budget[b]])
        for column in np.flatnonzero(covered[b]):
            assert owner[b, column] == first_of[words.number_BL[b, column]]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_length_predict_a_token(kind: str) -> None:
    """15% of 3 tokens are half a token, of 12 two. A word of 10 is longer than these two, and only its first ones are taken."""
    config = few.setting("masked_lm", objective=dict(masking=kind, max_span_length=3, mean_span_length=1.5))
    starts_word = np.arange(SIZE) != 6
    tokens = np.full((200, 40), few.PAD)
    tokens[:, :3] = few.BOS, 5, few.EOS
    tokens[::2, :12] = [few.BOS, 5, *[6] * 9, few.EOS]
    tokens[0, 1:-1] = 5  # a row with more words than all others
    maskable = tokens >= 5
    batch = Masking(config.objective, few.Words(SIZE, starts_word=starts_word), 40)(
        tokens.copy(),
        maskable,
        np.where(maskable.any(1), maskable.sum(1) + 2, 0),
        example_keys(0, "test", 0, np.arange(200)),
        0,
    )
    assert batch["weights_BM"].sum(1).tolist() == [6, *[1, 2] * 99, 1]
    if kind == "whole_word":
        assert (batch["mask_positions_BM"][2::2, :2] == [1, 2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_ordinary_tokens_predict_nothing(kind: str) -> None:
    masking = Masking(few.setting("masked_lm", objective=dict(masking=kind)).objective, few.Words(), 8)
    tokens, none = np.full((2, 8), few.EOS), np.zeros((2, 8), bool)
    batch = masking(tokens.copy(), none, np.array([2, 0]), example_keys(0, "test", 0, np.arange(2)), 0)
    assert not batch["weights_BM"].any() and (batch["tokens_BL"] == tokens).all()


def test_words_that_do_not_fit_are_skipped() -> None:
    number = np.array([[0, 0, 0, 1, 1, 2, 3]])
    words = Words(number, np.array([[3, 2, 1, 1]]), np.ones((1, 4), int))
    order = np.array([[0.2, 0.1, 0.4, 0.3]])  # word 1 (2 tokens), word 0 (3), word 3 (1), word 2 (1)
    assert choose_words(words, order, np.array([3]))[0].tolist() == [False] * 3 + [True, True, False, True]
    alone = Words(number[:, :3], np.array([[3]]), np.ones((1, 1), int))  # only a part of it fits
    assert choose_words(alone, order[:, :1], np.array([2]))[0].tolist() == [True, True, False]


def test_spans_are_placed_in_order_without_overlap() -> None:
    number = np.arange(8)[None]
    words = Words(number, np.ones((1, 8), int), np.array([[1, 1, 1, 1, 1, 2, 2, 2]]))
    order = np.array([[0.9, 0.8, 0.7, 0.1, 0.2, 0.6, 0.5, 0.3]])
    span = np.array([[3, 3, 3, 3, 2, 3, 3, 3]])
    # Word 3 covers 3 and 4, where its run ends, so 4 begins none; then 7; then 6, which meets 7; then 5; then 2.
    covered, owner = choose_spans(words, order, span, np.array([5]))
    assert covered[0].tolist() == [False, False, False, True, True, True, True, True]
    assert owner[0, 3:].tolist() == [3, 3, 5, 6, 7]


def test_frequencies_of_lengths_are_those_of_the_papers() -> None:
    config = few.setting("masked_lm", objective=dict(masking="ngram", max_span_length=3)).objective
    # Lan et al. 2019, section 4.1: (1/n) / (1 + 1/2 + 1/3).
    np.testing.assert_allclose(span_length_probs(config), np.array([6, 3, 2]) / 11)
    config = few.setting(
        "masked_lm", objective=dict(masking="span", mean_span_length=3.8, max_span_length=10)
    ).objective
    # Joshi et al. 2019, section 3.1: a geometric distribution of p = 0.2, clipped at 10, has a mean of about 3.8.
    shares = span_length_probs(config)
    geometric = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    assert (shares * np.arange(1, 11)).sum() == pytest.approx(3.8) and np.abs(shares - geometric).max() < 0.005


def test_lengths_of_spans_follow_their_frequencies() -> None:
    words, draws = 3000, np.random.default_rng(0)
    none = Words(np.arange(words)[None], np.ones((1, words), int), np.ones((1, words), int))
    config = few.setting("masked_lm", objective=dict(masking="span", mean_span_length=3.8)).objective
    ends = np.cumsum(span_length_probs(config))[:-1]
    span = 1 + np.searchsorted(ends, draws.random((1, words)), side="right")
    covered, owner = choose_spans(none, draws.random((1, words)), span, np.array([150]))
    lengths = np.bincount(owner[covered])
    lengths = lengths[lengths > 0]  # 5% are covered, so hardly a span meets another
    assert abs(lengths.mean() - 3.8) < 5 * 2.5 / math.sqrt(len(lengths)) and lengths.max() <= 10 and lengths.min() == 1


def test_a_span_is_masked_entirely_or_not_at_all() -> None:
    batch = mask("span", keep_rate=0.0, random_rate=0.5)
    chosen_BL, is_mask_BL = chosen(batch), batch["tokens_BL"] == few.MASK
    both = chosen_BL[:, 1:] & chosen_BL[:, :-1]
    alike = (is_mask_BL[:, 1:] == is_mask_BL[:, :-1])[both].mean()
    apart = mask("ngram", keep_rate=0.0, random_rate=0.5)
    pairs = chosen(apart)[:, 1:] & chosen(apart)[:, :-1]
    loose = (apart["tokens_BL"] == few.MASK)[:, 1:] == (apart["tokens_BL"] == few.MASK)[:, :-1]
    assert alike > 0.85 and near(loose[pairs].mean(), 0.5, int(pairs.sum()))


def test_static_masks_repeat(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, tiny.documents(seed=1, count=40))
    rows = few.examples(few.setting("masked_lm", objective=dict(dupe_factor=2)), store, few.Words())
    first, second, third = (few.epoch(rows, number) for number in range(3))
    for name in first:
        np.testing.assert_array_equal(first[name], third[name])
    assert (first["mask_positions_BM"] != second["mask_positions_BM"]).any(1).mean() > 0.5


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (dict(keep_rate=0.6, random_rate=0.5), "add up to more than 1"),
        (dict(masking="span", mean_span_length=5.5, max_span_length=10), "must be below 5.5"),
        (dict(masking="span", mean_span_length=1.5, max_span_length=2), "must be below 1.5"),
    ],
)
def test_impossible_rates_are_refused(keys: dict, words: str) -> None:
    config = few.setting("masked_lm", objective=keys)
    with pytest.raises(ConfigError, match=words):
        check_masking(config.objective)
    with pytest.raises(ConfigError, match=words):
        build_objective(config, few.Words(), tiny.model("bert").arch)


@pytest.mark.parametrize(
    "keys",
    [
        dict(keep_rate=0.5, random_rate=0.5),
        dict(masking="span", max_span_length=1, mean_span_length=1.0),
        dict(masking="span", max_span_length=2, mean_span_length=1.4),
        dict(masking="ngram", max_span_length=10, mean_span_length=9.0),  # whose lengths have no mean to set
    ],
)
def test_rates_and_lengths_at_their_limits_are_possible(keys: dict) -> None:
    check_masking(few.setting("masked_lm", objective=keys).objective)
