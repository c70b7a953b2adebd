"""Pairs of segments in order or swapped (Lan et al. 2019, section 3.1), against the text they are cut from.

Every token of these stores occurs once: id 5 + j is token j of the text.
"""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.stateless_rng import example_keys
from lm_research.data.store import TokenStore
from lm_research.objectives.segment_pairs import PairReader

ROOM = 29


def numbered(folder: pathlib.Path, texts: list) -> TokenStore:
    token, renamed = 5, []
    for document in texts:
        renamed.append([])
        for sentence in document:
            renamed[-1].append(list(range(token, token + len(sentence))))
            token += len(sentence)
    return tiny.store(folder, renamed, vocab_size=token)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return numbered(tmp_path_factory.mktemp("store"), tiny.documents(0, 400, (1, 30), (1, 12)))


def test_half_of_the_pairs_change_places_and_nothing_else(store: TokenStore) -> None:
    reader = PairReader(store, ROOM, "sentence_order", short_seq_prob=0.1)
    chunk = np.arange(len(reader.chunks))
    pairs = reader.read(chunk, example_keys(0, "test", 0, chunk))
    count = len(chunk)
    assert abs(pairs.switched.mean() - 0.5) < 5 * math.sqrt(0.25 / count) and count > 500
    first = np.where(pairs.switched, pairs.start_b, pairs.start_a)
    second = np.where(pairs.switched, pairs.start_a, pairs.start_b)
    first_length = np.where(pairs.switched, pairs.length_b, pairs.length_a)
    whole = (pairs.length_a > 0) & (pairs.length_b > 0)
    assert (pairs.length_a + pairs.length_b <= ROOM).all() and whole.mean() > 0.95
    # The label is true: the segment that is first in the text is A exactly where it is 0; both are of one chunk.
    assert (first + first_length <= second)[whole].all()
    starts = np.asarray(store.sentence_starts)
    begin, end = starts[reader.chunks[:, 1]], starts[reader.chunks[:, 2]]
    second_length = np.where(pairs.switched, pairs.length_a, pairs.length_b)
    assert (first >= begin).all() and (second + second_length <= end).all()
    # The other epoch's are others.
    again = reader.read(chunk, example_keys(0, "test", 1, chunk))
    assert 0.4 < (again.switched == pairs.switched).mean() < 0.6


def test_a_single_sentence_is_cut_inside_and_a_single_token_has_weight_zero(tmp_path: pathlib.Path) -> None:
    store = numbered(tmp_path, [[[1] * 9], [[1]], [[1] * 4, [1] * 3], [[1] * 9]])
    config = few.setting("masked_lm", "albert", objective=dict(sentence_pair="sentence_order", short_seq_prob=0.0))
    rows = few.examples(config, store, few.Words(len(store.token_counts)))
    for number in range(20):
        batch = few.epoch(rows, number)
        assert batch["row_weights_B"].tolist() == [1.0, 0.0, 1.0, 1.0]
        assert batch["segments_BL"].sum(1).tolist() == [12, 4, 10, 12]  # tokens and three special ones
        types = batch["types_BL"].sum(1)
        assert 2 <= types[0] <= 9  # B and its end: 1 to 8 of the 9 tokens
        assert types[2] in (4, 5)  # the boundary between the sentences, either way round
    reader = PairReader(store, ROOM, "sentence_order", short_seq_prob=0.0)
    pairs = reader.read(np.full(300, 3), example_keys(0, "test", 0, np.arange(300)))
    assert set(pairs.length_a.tolist()) == set(pairs.length_b.tolist()) == set(range(1, 9))


def test_short_rows_have_any_length(tmp_path: pathlib.Path) -> None:
    """From 2 to the most, 10, of a sentence of 50 tokens."""
    reader = PairReader(numbered(tmp_path, [[[1] * 50]]), 10, "none", short_seq_prob=1.0)
    lengths = reader.read(np.zeros(500, int), example_keys(0, "test", 0, np.arange(500))).length_a
    assert set(lengths.tolist()) == set(range(2, 11))


def test_a_row_that_the_first_segment_fills_has_one_sentence_of_the_second(tmp_path: pathlib.Path) -> None:
    """A of 30 tokens, and of another document B of one: together at most 29."""
    reader = PairReader(numbered(tmp_path, [[[1] * 30], [[1]] * 40]), ROOM, "next_sentence", short_seq_prob=0.0)
    pairs = reader.read(np.zeros(50, int), example_keys(0, "test", 0, np.arange(50)))
    assert pairs.switched.all() and set(pairs.length_a.tolist()) == {28} and set(pairs.length_b.tolist()) == {1}


def test_rows_show_the_pair_in_the_order_of_the_label(store: TokenStore) -> None:
    config = few.setting("masked_lm", "albert", objective=dict(sentence_pair="sentence_order", short_seq_prob=0.0))
    batch = few.epoch(few.examples(config, store, few.Words(len(store.token_counts))))
    for b in np.flatnonzero(batch["row_weights_B"]):
        tokens, real = batch["tokens_BL"][b].copy(), batch["weights_BM"][b] > 0
        tokens[batch["mask_positions_BM"][b][real]] = batch["targets_BM"][b][real]
        first = tokens[1]
        second = tokens[np.flatnonzero(batch["types_BL"][b])[0]]
        assert batch["next_sentence_B"][b] == (second < first)


def test_lengths_of_chunks(tmp_path: pathlib.Path) -> None:
    """Sentences of 4, 3, 5, 2 and 6 tokens fill 7 twice; the last, on its own, takes the one before it too."""
    store = tiny.store(tmp_path, [[[5] * size for size in (4, 3, 5, 2, 6)]])
    reader = PairReader(store, 7, "none", 0.0)
    assert reader.chunk_lengths().tolist() == [4 + 3, 5 + 2, 2 + 6]
    assert reader.chunks.tolist() == [[0, 0, 2], [0, 2, 4], [0, 3, 5]]


def test_long_sentences_are_chunks_of_their_own(tmp_path: pathlib.Path) -> None:
    """Of 9 tokens where 7 fill a row; only a document's last one takes the sentence before it, if there is one."""
    texts = [[9, 4, 2, 9, 1, 1], [9], [3, 9, 9]]
    store = tiny.store(tmp_path, [[[5] * size for size in sizes] for sizes in texts])
    chunks = [[0, 0, 1], [0, 1, 4], [0, 4, 6], [1, 6, 7], [2, 7, 9], [2, 8, 10]]
    assert PairReader(store, 7, "none", 0.0).chunks.tolist() == chunks


def test_the_other_of_two_documents_is_drawn(tmp_path: pathlib.Path) -> None:
    store = numbered(tmp_path, [[[1] * 6] * 3, [[1] * 6] * 3])
    reader = PairReader(store, ROOM, "next_sentence", short_seq_prob=0.0)
    chunk = np.repeat([0, 1], 50)
    pairs = reader.read(chunk, example_keys(0, "test", 0, np.arange(100)))
    assert (reader.chunks[:, 0] == [0, 1]).all() and 30 < pairs.switched.sum() < 70
    assert ((pairs.start_b >= 18) == (chunk == 1) ^ pairs.switched).all()
