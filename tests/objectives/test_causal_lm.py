"""Packed rows against a stream built by hand, and their loss against the documents' own.

Legend: B rows, L length.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.data.store import TokenStore
from lm_research.objectives.causal_lm import CausalLanguageModel, PackedRows

L, SEPARATOR = 16, tiny.WordTokenizer.roles["sep"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return tiny.store(tmp_path_factory.mktemp("store"), tiny.documents(seed=0, count=30))


def stream_of(store: TokenStore) -> list[tuple[int, int, int]]:
    """(token, document, offset in it) of the whole stream: before each document is the separator, offset 0."""
    stream = []
    for document in range(store.num_documents):
        tokens = [SEPARATOR, *store.document_tokens(document).tolist()]
        stream += [(token, document, offset) for offset, token in enumerate(tokens)]
    return stream


def rows(store: TokenStore, purpose: str, epoch: int, indices: Any = None, seed: int = 0) -> dict[str, np.ndarray]:
    examples = PackedRows(store, L, SEPARATOR, seed, purpose)
    index_B = np.arange(examples.num_examples) if indices is None else np.asarray(indices)
    return examples.batch(np.full(len(index_B), epoch), index_B)


def check_against_stream(batch: dict[str, np.ndarray], places_BL: np.ndarray, stream: list, limit: int | None) -> None:
    """Every field of rows whose tokens are at the given places of the stream; past `limit` there is nothing."""
    for b in range(len(places_BL)):
        row, segment, position = {name: value[b] for name, value in batch.items()}, 1, 0
        for column, place in enumerate(places_BL[b].tolist()):
            if limit is not None and place >= limit:
                names = ("segments_BL", "weights_BL", "tokens_BL", "positions_BL")
                assert [row[name][column] for name in names] == [0, 0, 0, 0]
                continue
            token, _, offset = stream[place % len(stream)]
            if column and offset == 0:
                segment, position = segment + 1, 0
            has_successor = limit is None or place + 1 < limit
            target = stream[(place + 1) % len(stream)][0] if has_successor else 0
            expected = (token, target, position, segment, float(has_successor))
            names = ("tokens_BL", "targets_BL", "positions_BL", "segments_BL", "weights_BL")
            assert tuple(row[name][column] for name in names) == expected, (b, column)
            position += 1


def test_validation_rows_are_the_stream_cut_every_l_tokens(store: TokenStore) -> None:
    stream, batch = stream_of(store), rows(store, "validation", 0)
    places_BL = np.arange(batch["tokens_BL"].size).reshape(-1, L)
    check_against_stream(batch, places_BL, stream, len(stream))


def test_validation_predicts_every_token_but_the_first_exactly_once(store: TokenStore) -> None:
    stream, batch = stream_of(store), rows(store, "validation", 0)
    predicted = batch["targets_BL"][batch["weights_BL"] > 0]
    assert predicted.tolist() == [token for token, _, _ in stream[1:]]
    assert batch["weights_BL"].sum() == store.num_tokens + store.num_documents - 1


def test_validation_ends_where_the_stream_does(tmp_path: pathlib.Path) -> None:
    # Streams of 16, 17, 32, 33 tokens (one document, its separator included) have 15, 16, 31, 32 to predict.
    for length, expected in ((16, 1), (17, 1), (18, 2), (32, 2), (33, 2), (34, 3)):
        store = tiny.store(tmp_path / str(length), [[list(range(5, 4 + length))]])
        batch = rows(store, "validation", 0)
        assert len(batch["tokens_BL"]) == expected and batch["weights_BL"].sum() == length - 1


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_training_rows_cut_the_ring_at_the_epochs_shift(store: TokenStore, epoch: int) -> None:
    stream, batch = stream_of(store), rows(store, "train", epoch)
    start = batch["tokens_BL"].ravel()[: 3 * L].tolist()
    tokens = [token for token, _, _ in stream]
    shifts = [shift for shift in range(L) if (tokens * 2)[shift : shift + 3 * L] == start]
    assert len(shifts) == 1
    places_BL = shifts[0] + np.arange(batch["tokens_BL"].size).reshape(-1, L)
    check_against_stream(batch, places_BL, stream, None)
    covered = np.bincount((places_BL.ravel() + 1) % len(stream), minlength=len(stream))
    assert covered.min() == 1 and covered.sum() - len(stream) < L  # every token predicted; less than a row twice


def test_epochs_shift_by_any_amount(store: TokenStore) -> None:
    first = [tuple(rows(store, "train", epoch, [0])["tokens_BL"][0]) for epoch in range(200)]
    assert len(set(first)) == L  # 200 draws of 16 shifts miss one with probability 16 (15/16)^200 = 4e-5


def test_rows_are_a_function_of_seed_epoch_and_index(store: TokenStore) -> None:
    whole = rows(store, "train", 3)
    some = PackedRows(store, L, SEPARATOR, 0, "train").batch(np.array([0, 3, 3]), np.array([1, 4, 2]))
    for name, value in some.items():
        np.testing.assert_array_equal(value[1:], whole[name][[4, 2]])
    shifts = {tuple(rows(store, "train", 3, [0], seed)["tokens_BL"][0]) for seed in range(8)}
    assert len(shifts) > 1


def test_a_ring_shorter_than_a_row_wraps_around(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, [[[5, 6]], [[7, 8, 9]]])
    batch = rows(store, "train", 0)
    stream = stream_of(store)
    assert batch["tokens_BL"].shape == (1, L) and batch["weights_BL"].all()
    shift = [token for token, _, _ in stream].index(batch["tokens_BL"][0, 0])
    if batch["tokens_BL"][0, 0] == SEPARATOR:
        shift = 0 if batch["tokens_BL"][0, 1] == 5 else 3
    check_against_stream(batch, shift + np.arange(L)[None], stream, None)


def test_empty_rows_have_weight_zero_and_change_no_other(store: TokenStore) -> None:
    batch = rows(store, "validation", 0, [3, -1, 0])
    assert batch["weights_BL"][1].sum() == batch["segments_BL"][1].sum() == batch["tokens_BL"][1].sum() == 0
    whole = rows(store, "validation", 0)
    for name, value in batch.items():
        np.testing.assert_array_equal(value[[0, 2]], whole[name][[3, 0]])


def test_batches_have_the_types_the_step_expects(store: TokenStore) -> None:
    kinds = {name: value.dtype for name, value in rows(store, "train", 0, [0, 1]).items()}
    assert {name for name, kind in kinds.items() if kind == np.float32} == {"weights_BL"}
    assert set(kinds.values()) == {np.dtype(np.int32), np.dtype(np.float32)}


def test_packed_loss_is_the_sum_of_the_documents_losses(tmp_path: pathlib.Path) -> None:
    """Six documents fill three rows to the last token; each on its own in a row must cost the same."""
    lengths = [6, 10, 16, 4, 5, 7]  # separators included
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, tiny.VOCAB, n - 1).tolist() for n in lengths]
    store = tiny.store(tmp_path, [[text] for text in texts])
    config = tiny.config("gpt2")
    definition = tiny.model("gpt2")
    objective = CausalLanguageModel(config, tiny.WordTokenizer())
    packed = objective.examples(store, "validation").batch(np.zeros(6, int), np.array([0, 1, 2, -1, -1, -1]))

    alone = {name: np.zeros_like(value) for name, value in packed.items()}
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        following = [SEPARATOR] if row < 5 else []
        alone["tokens_BL"][row, :n] = [SEPARATOR, *text]
        alone["targets_BL"][row, : n - 1 + len(following)] = [*text, *following]
        alone["weights_BL"][row, : n - 1 + len(following)] = 1
        alone["positions_BL"][row, :n], alone["segments_BL"][row, :n] = np.arange(n), 1

    params = tiny.random_params(definition)
    sums = tiny.jit(lambda params, batch: objective.metric_sums(definition.bind(params), batch, None))
    together, apart = sums(params, packed), sums(params, alone)
    assert float(together["lm_loss_nats"]) == pytest.approx(float(apart["lm_loss_nats"]), rel=1e-5)
    assert float(together["lm_accuracy"]) == float(apart["lm_accuracy"])
    totals = jax.tree.map(float, objective.normalizers(packed))
    assert totals == jax.tree.map(float, objective.normalizers(alone)) == {"tokens": 47.0, "real": 48.0}
