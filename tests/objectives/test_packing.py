"""Packed rows hold every text once, and a text's loss does not depend on its neighbors.

Legend: B rows, L length.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.store import TokenStore
from lm_research.objectives import OBJECTIVES, define
from lm_research.objectives.packing import describe_rows, one_per_row, pack, split_documents, unpack


def pieces_of(packs: Any) -> list[list[int]]:
    return [packs.items[a:b].tolist() for a, b in zip(packs.starts[:-1], packs.starts[1:], strict=True)]


def best_fit_decreasing(sizes: list[int], room: int) -> int:
    """Rows that the plain algorithm opens, one text at a time."""
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, free in enumerate(left) if free >= size]
        if fitting:
            left[min(fitting, key=lambda row: left[row])] -= size
        else:
            left.append(room - size)
    return len(left)


@pytest.mark.parametrize(("count", "room", "low"), [(400, 64, 1), (300, 50, 10), (200, 20, 11), (50, 7, 7), (0, 8, 1)])
def test_packing_keeps_every_text_once_and_as_tightly_as_the_plain_algorithm(count: int, room: int, low: int) -> None:
    sizes = np.random.default_rng(count).integers(low, room + 1, count)
    packs = pack(sizes, room)
    rows = pieces_of(packs)
    assert sorted(item for row in rows for item in row) == list(range(count))
    assert all(sum(sizes[row]) <= room and row == sorted(row) for row in rows)
    assert len(packs) == best_fit_decreasing(sizes.tolist(), room)


def test_many_short_texts_share_rows_in_their_order() -> None:
    """Two texts of 3 tokens, one of 2, and so on: a row of 10 has three of 3 tokens, or five of 2."""
    three, two = ([n for n in range(135) if (n % 3 == 2) == short] for short in (False, True))
    expected = [three[n : n + 3] for n in range(0, 90, 3)] + [two[n : n + 5] for n in range(0, 45, 5)]
    assert pieces_of(pack(np.array([3, 3, 2] * 45), 10)) == expected


def test_a_row_that_fits_several_texts_takes_them_all() -> None:
    """The 4 leaves 4 of 8, which two texts of 2 fill."""
    assert pieces_of(pack(np.array([2, 4, 2]), 8)) == [[0, 1, 2]]


def test_rows_of_a_batch_in_any_order() -> None:
    packs = pack(np.array([5, 5, 5, 3, 2, 9]), 10)
    rows = pieces_of(packs)
    row, item = unpack(packs, np.array([len(rows) - 1, -1, 0]))
    assert row.tolist() == [0] * len(rows[-1]) + [2] * len(rows[0]) and item.tolist() == rows[-1] + rows[0]
    assert len(one_per_row(4)) == 4 and unpack(one_per_row(4), np.array([3, -1, 1]))[1].tolist() == [3, 1]


def test_documents_are_split_without_losing_a_token(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, tiny.documents(seed=3, count=30, sentences=(1, 12)))
    pieces = split_documents(store, 14)
    read = [np.asarray(store.tokens[a : a + n]) for a, n in zip(*pieces, strict=True)]
    np.testing.assert_array_equal(np.concatenate(read), store.tokens)
    ends = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
    assert pieces.lengths.max() == 14 and np.isin(ends[:-1], pieces.starts).all()
    cut = pieces.starts + pieces.lengths
    assert (pieces.lengths[~np.isin(cut, ends)] == 14).all()


def unmasked(batch: dict[str, np.ndarray]) -> np.ndarray:
    tokens_BL, (row, place) = batch["tokens_BL"].copy(), np.nonzero(batch["weights_BM"])
    tokens_BL[row, batch["mask_positions_BM"][row, place]] = batch["targets_BM"][row, place]
    return tokens_BL


def test_packed_rows_hold_every_token_once_between_their_own_ends(tmp_path: pathlib.Path) -> None:
    store = tiny.store(tmp_path, [*tiny.documents(seed=4, count=60, sentences=(1, 5)), [[7] * 75]])
    config = few.setting("masked_lm", objective=dict(sentence_pair="none"), data=dict(packing=True, max_length=32))
    rows = few.examples(config, store, few.Words())
    assert f"{rows.notes}".endswith("no token dropped")
    batch = few.epoch(rows)
    tokens_BL, segments_BL, positions_BL = unmasked(batch), batch["segments_BL"], batch["positions_BL"]
    words = tokens_BL[tokens_BL >= 5]
    np.testing.assert_array_equal(np.bincount(words, minlength=few.VOCAB), store.token_counts)
    for b in range(len(tokens_BL)):
        for number in range(1, segments_BL[b].max() + 1):
            inside = np.flatnonzero(segments_BL[b] == number)
            text = tokens_BL[b, inside]
            assert (np.diff(inside) == 1).all() and positions_BL[b, inside].tolist() == list(range(len(inside)))
            assert text[0] == few.BOS and text[-1] == few.EOS and (text[1:-1] >= 5).all()
    assert segments_BL.max() > 2 and (segments_BL > 0).mean() > 0.9
    assert (tokens_BL[segments_BL == 0] == few.PAD).all()


def by_segment(name: str, batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """A packed batch of one row as `rows` rows that hold one text each, at their beginning."""
    split = {key: np.zeros((rows, *value.shape[1:]), value.dtype) for key, value in batch.items()}
    for side, width in (("", "L"), ("source_", "S")):
        key = f"{side}segments_B{width}"
        if key not in batch:
            continue
        for number in range(1, rows + 1):
            at = np.flatnonzero(batch[key][0] == number)
            fields = [field for field in (f"{side}tokens_B{width}", f"{side}positions_B{width}", key) if field in batch]
            if not side and name == "seq2seq":
                fields += ["targets_BL", "weights_BL"]
            for field in fields:
                split[field][number - 1, : len(at)] = batch[field][0, at]
            split[key][number - 1] = split[key][number - 1] > 0
            if name == "masked_lm":
                predicted = np.flatnonzero(np.isin(batch["mask_positions_BM"][0], at) & (batch["weights_BM"][0] > 0))
                split["mask_positions_BM"][number - 1, : len(predicted)] = (
                    batch["mask_positions_BM"][0, predicted] - at[0]
                )
                for field in ("targets_BM", "weights_BM"):
                    split[field][number - 1, : len(predicted)] = batch[field][0, predicted]
    return split


def pair_store(folder: pathlib.Path) -> TokenStore:
    rng = np.random.default_rng(5)
    texts = [[rng.integers(5, few.VOCAB, n).tolist() for n in rng.integers(1, 12, 2)] for _ in range(40)]
    return tiny.store(folder, texts)


@pytest.mark.parametrize(("name", "family"), [("masked_lm", "roberta"), ("seq2seq", "transformer"), ("seq2seq", "t5")])
def test_the_loss_of_a_packed_row_is_that_of_its_separate_texts(name: str, family: str, tmp_path: pathlib.Path) -> None:
    objective = dict(sentence_pair="none") if name == "masked_lm" else {}
    config = few.setting(name, family, objective=objective, data=dict(packing=True, max_length=48))
    store = pair_store(tmp_path)
    definition, kind = define(config, few.VOCAB), OBJECTIVES[name](config, few.Words())
    rows = kind.examples(store, "validation")
    batch = rows.batch(np.zeros(1, int), np.array([len(rows.packs) // 2]))
    texts = int(batch["segments_BL"].max())
    assert texts >= 3
    params = tiny.random_params(definition)
    loss = tiny.jit(lambda params, batch: kind.metric_sums(definition.bind(params), batch, None)[kind.token_loss_name])
    apart = by_segment(name, batch, texts)
    for key in ("weights_BL", "weights_BM"):
        assert key not in batch or batch[key].sum() == apart[key].sum() > 0
    together = float(loss(params, batch))
    assert together == pytest.approx(float(loss(params, apart)), rel=2e-6)
    # It can fail: texts that see one another have another loss.
    mixed = {key: np.minimum(value, 1) if "segments" in key else value for key, value in batch.items()}
    assert abs(float(loss(params, mixed)) / together - 1) > 1e-4


@pytest.mark.parametrize("name", ["seq2seq", "span_corruption", "denoising"])
def test_pairs_of_a_packed_row_stay_together(name: str, tmp_path: pathlib.Path) -> None:
    """Sources and targets carry the same numbers, in every row, and no text is lost."""
    config = few.setting(name, data=dict(packing=True, max_length=40))
    store = pair_store(tmp_path)
    rows = few.examples(config, store, few.Words(sentinels=8))
    batch = few.epoch(rows)
    count = sum(len(row) for row in pieces_of(rows.packs))
    assert batch["segments_BL"].max() >= 2
    ends_BL = batch["targets_BL"] == few.EOS
    assert ends_BL.sum() == count == (batch["source_tokens_BS"] == few.EOS).sum()
    np.testing.assert_array_equal(batch["segments_BL"].max(1), batch["source_segments_BS"].max(1))
    # The decoder begins each text again at position 0, and reads its targets one place later.
    first_BL = (batch["positions_BL"] == 0) & (batch["segments_BL"] > 0)
    start = few.EOS if name == "denoising" else few.PAD
    assert first_BL.sum() == count and (batch["tokens_BL"][first_BL] == start).all()
    row, column = np.nonzero((batch["segments_BL"] > 0) & ~first_BL)
    np.testing.assert_array_equal(batch["tokens_BL"][row, column], batch["targets_BL"][row, column - 1])


@pytest.mark.parametrize(
    ("lengths", "sources", "targets", "texts"),
    [
        ((40, 8), [12] * 6, [1] * 6, [3, 3]),  # with their ends 13 of 40, three in a row, and 2 of 8
        ((40, 8), [1] * 6, [3] * 6, [2, 2, 2]),  # 2 of 40 and 4 of 8
        ((10, 9), [1] * 6, [1] * 6, [3, 3]),  # 2 of 9 are 2.2 of 10, rounded up
        ((8, 8), [7, 1, 1], [1, 7, 1], [1, 1, 1]),
    ],
)
def test_pairs_share_a_row_where_both_sides_fit(
    lengths: tuple[int, int], sources: list[int], targets: list[int], texts: list[int], tmp_path: pathlib.Path
) -> None:
    source_length, target_length = lengths
    store = tiny.store(tmp_path, [[[5] * a, [6] * b] for a, b in zip(sources, targets, strict=True)])
    data, objective = dict(packing=True, max_length=source_length), dict(target_length=target_length)
    rows = few.examples(few.setting("seq2seq", data=data, objective=objective), store, few.Words())
    batch = few.epoch(rows)
    assert batch["segments_BL"].max(1).tolist() == batch["source_segments_BS"].max(1).tolist() == texts
    objective = OBJECTIVES["seq2seq"](few.setting("seq2seq"), few.Words())
    real = sum(sources) + sum(targets) + 2 * len(sources)
    assert objective.normalizers(batch) == {"tokens": sum(targets) + len(targets), "real": real}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([5, 4, 4, 3, 2], "1.67 texts a row, 75.0% of positions used"),  # in three rows of 8 (see `pack`): 18 / 24
        ([1, 1, 2], "3.00 texts a row, 50.0% of positions used"),
        ([], "0.00 texts a row, 0.0% of positions used"),
    ],
)
def test_how_full_rows_are(sizes: list[int], expected: str) -> None:
    lengths = np.array(sizes, int)
    assert describe_rows(lengths, 8, pack(lengths, 8)) == expected
