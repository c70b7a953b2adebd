"""Which examples a step reads: every one once an epoch, the same whatever the number of processes."""

from __future__ import annotations

import pathlib
import pickle

import numpy as np
import pytest

from lm_research.common.rounding import padded_length
from lm_research.data.sampler import BatchBuilder, Examples, LengthGroupedSampler, SharedRowExamples, eval_examples
from lm_research.data.stateless_rng import permute
from lm_research.errors import ConfigError, DamagedStore


class Numbers(Examples):
    """Examples that identify themselves: rows of (epoch, index)."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"who_BL": np.stack([epoch_B, index_B], 1), "row_B": index_B}


def train_examples(step: int, batch_size: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and example of each row of a step's batch."""
    return Numbers(size).locate(np.arange(step * batch_size, (step + 1) * batch_size), seed)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (50, 6)])
def test_every_example_is_read_once_an_epoch(size: int, batch_size: int) -> None:
    epochs = 4
    steps = -(-epochs * size // batch_size)
    parts = [train_examples(step, batch_size, size, seed=5) for step in range(steps)]
    epoch, index = (np.concatenate(x)[: epochs * size] for x in zip(*parts, strict=True))
    assert epoch.tolist() == np.repeat(np.arange(epochs), size).tolist()
    for number in range(epochs):
        assert sorted(index[epoch == number]) == list(range(size))


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = {tuple(train_examples(step, 20, 20, seed)[1]) for step in range(3) for seed in range(3)}
    assert len(orders) == 9 and tuple(range(20)) not in orders


def test_step_a_million_costs_nothing_and_keeps_count() -> None:
    size, batch_size, step = 1_000_003, 4096, 10**6
    epoch, index = train_examples(step, batch_size, size, seed=0)
    assert epoch[0] == step * batch_size // size and len(set(index)) == batch_size
    assert index.min() >= 0 and index.max() < size
    again = BatchBuilder(Numbers(size), batch_size, 1, slice(None), 0)(step)["who_BL"][0]
    assert again.tolist() == np.stack([epoch, index], 1).tolist()


def test_evaluation_reads_in_order_once() -> None:
    epoch, index = eval_examples(1, 4, 6)
    assert index.tolist() == [4, 5, -1, -1] and not epoch.any()
    feed = BatchBuilder(Numbers(6), 4, 0, slice(None), None)
    assert np.concatenate([feed(0)["row_B"], feed(1)["row_B"]]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


@pytest.mark.parametrize("accumulation", [0, 1, 3])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_the_processes_make_the_global_batch(processes: int, accumulation: int) -> None:
    batch_size, seed, step = 24, (3 if accumulation else None), 5
    micro = batch_size // max(1, accumulation)
    share = micro // processes
    slices = [slice(p * share, (p + 1) * share) for p in range(processes)]
    parts = [BatchBuilder(Numbers(100), batch_size, accumulation, rows, seed)(step) for rows in slices]
    axis = 1 if accumulation else 0
    whole = BatchBuilder(Numbers(100), batch_size, accumulation, slice(0, micro), seed)(step)
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis), value)
    epoch, index = train_examples(step, batch_size, 100, 3) if accumulation else eval_examples(step, batch_size, 100)
    assert whole["row_B"].reshape(-1).tolist() == index.tolist()
    assert whole["row_B"].shape == ((accumulation, micro) if accumulation else (micro,))
    assert whole["who_BL"].shape == (*whole["row_B"].shape, 2)
    assert whole["who_BL"][..., 0].reshape(-1).tolist() == epoch.tolist()


def test_accumulation_reads_the_same_examples() -> None:
    whole, split = (BatchBuilder(Numbers(100), 24, count, slice(None), 3)(7)["row_B"] for count in (1, 4))
    assert split.shape == (4, 6) and split.reshape(-1).tolist() == whole.reshape(-1).tolist()


class Long(Numbers):
    """Examples of the given lengths."""

    def __init__(self, lengths_N: np.ndarray) -> None:
        super().__init__(len(lengths_N))
        self.lengths_N = lengths_N

    def example_lengths(self) -> np.ndarray:
        return self.lengths_N


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (50, 6), (500, 3), (397, 2)])
def test_groups_read_every_example_as_often_as_the_plain_order(size: int, batch_size: int) -> None:
    """Of whole epochs, wherever they end within a batch: the same (epoch, example) pairs in another order."""
    lengths = np.random.default_rng(0).integers(1, 100, size)
    for epochs in (1, 2, 3):
        steps = range(-(-epochs * size // batch_size))
        plain = np.concatenate([np.stack(train_examples(s, batch_size, size, 5), 1) for s in steps])
        groups = LengthGroupedSampler(Long(lengths), batch_size, 5)
        grouped = np.concatenate([np.stack(groups(step), 1) for step in steps])
        assert sorted(map(tuple, grouped.tolist())) == sorted(map(tuple, plain.tolist()))


def test_rows_of_a_group_are_about_equally_long_and_batches_are_unordered() -> None:
    lengths = np.random.default_rng(0).integers(0, 1000, 4000)
    groups = LengthGroupedSampler(Long(lengths), 10, 0)
    batches = [lengths[groups(step)[1]] for step in range(400)]
    spreads = [np.ptp(batch) for batch in batches]
    # A pool of 500 rows sorted: ten neighbors span about 1,000 * 9 / 500 = 18; ten rows of a plain shuffle about 1,000 * 9 / 11 = 818.
    assert np.mean(spreads) == pytest.approx(18, rel=0.1)
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15  # 3 / sqrt(400)
    again = [lengths[groups(step)[1]] for step in range(400, 800)]
    assert {tuple(batch) for batch in batches} != {tuple(batch) for batch in again}


def test_a_feed_of_groups_is_divided_like_any_other() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 600)

    def feed(rows):
        return BatchBuilder(Long(lengths), 24, 2, rows, 3, LengthGroupedSampler(Long(lengths), 24, 3))

    whole = feed(slice(None))(7)["who_BL"]
    shares = [feed(slice(6 * p, 6 * p + 6))(7)["who_BL"] for p in range(2)]
    assert (
        feed(slice(None))(20)["who_BL"].tolist()
        != whole.tolist()
        == pickle.loads(pickle.dumps(feed(slice(None))))(7)["who_BL"].tolist()
    )
    assert np.concatenate(shares, axis=1).tolist() == whole.tolist()
    assert np.ptp(lengths[whole[..., 1]]) < 12


def test_rows_that_are_all_equally_long_are_not_grouped() -> None:
    with pytest.raises(ConfigError, match="group_by_length requires a labeled task"):
        LengthGroupedSampler(Numbers(5), 2, 0)


@pytest.mark.parametrize(("size", "batch_size", "pools"), [(20_000, 4, 100), (100, 4, 1), (10, 4, 1), (301, 4, 2)])
def test_pools_of_about_fifty_steps(size: int, batch_size: int, pools: int) -> None:
    """20,000 / (4 x 50) = 100; 0.5 and 0.05, at least one; 1.505, to the nearest."""
    assert LengthGroupedSampler(Long(np.arange(size)), batch_size, 0).pools == pools


@pytest.mark.parametrize(("size", "batch_size", "pool_steps"), [(60, 4, 5), (10, 4, 1), (97, 3, 4)])
def test_groups_by_sorting(size: int, batch_size: int, pool_steps: int) -> None:
    """Many records are equally long and keep the order in which they were drawn; a pool is cached, and never confused with another."""
    lengths = np.random.default_rng(3).integers(0, 4, size)
    groups = LengthGroupedSampler(Long(lengths), batch_size, 5, pool_steps)
    steps = -(-3 * size // batch_size)
    pool_of = [step * batch_size * groups.pools // size for step in range(steps + 50)]
    for step in [*range(steps), *range(steps - 1, -1, -1)]:
        pool = [other for other in range(len(pool_of)) if pool_of[other] == pool_of[step]]
        drawn = [train_examples(other, batch_size, size, 5) for other in pool]
        pairs = [(int(e), int(i)) for epoch, index in drawn for e, i in zip(epoch, index, strict=True)]
        ordered = sorted(pairs, key=lambda pair: lengths[pair[1]])
        places = permute(np.arange(len(pool)), len(pool), 5, "batches", pool_of[step])
        start = int(places[step - pool[0]]) * batch_size
        epoch, index = groups(step)
        assert list(zip(epoch.tolist(), index.tolist(), strict=True)) == ordered[start : start + batch_size]


class Shared(SharedRowExamples):
    """Rows of up to two examples; `arrange` receives the number of which the row count must be a multiple."""

    num_examples = 40

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def arrange(self, index_AB: np.ndarray, row_multiple: int) -> np.ndarray:
        rows = -(-index_AB.shape[1] // (2 * row_multiple)) * row_multiple
        whole = np.full((len(index_AB), rows * 2), -1)
        whole[:, : index_AB.shape[1]] = index_AB
        return whole.reshape(len(index_AB), rows, 2)

    def shared(self, index_BK: np.ndarray) -> dict[str, np.ndarray]:
        return {"who_BK": index_BK}


@pytest.mark.parametrize(("accumulation", "row_multiple", "rows"), [(2, 1, 3), (2, 2, 4), (0, 4, 8)])
def test_processes_share_rows_of_several_examples(accumulation: int, row_multiple: int, rows: int) -> None:
    """Micro-batches of 6 examples in 3 rows of two, or 4 where their number must be even; 12 examples in 8 where it must be divisible by 4."""

    def feed(part):
        return BatchBuilder(Shared(), 12, accumulation, part, 0, row_multiple=row_multiple)(1)["who_BK"]

    whole, micro = feed(slice(None)), 12 // max(1, accumulation)
    assert whole.shape == ((accumulation, rows, 2) if accumulation else (rows, 2))
    examples = train_examples(1, 12, 40, 0)[1]
    assert whole[whole >= 0].tolist() == examples.tolist()
    shares = [feed(slice(p * micro // row_multiple, (p + 1) * micro // row_multiple)) for p in range(row_multiple)]
    assert np.concatenate(shares, axis=-2).tolist() == whole.tolist()
    if row_multiple == 1:
        assert BatchBuilder(Shared(), 12, accumulation, slice(None), 0)(1)["who_BK"].tolist() == whole.tolist()


def test_a_part_receives_the_indices_of_the_whole_batch() -> None:
    class Whole(Numbers):
        def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
            return {"all_BG": np.tile(index_G, (len(index_B), 1)), "row_B": index_B}

    batch = BatchBuilder(Whole(100), 12, 2, slice(2, 4), 3)(5)
    index = train_examples(5, 12, 100, 3)[1]
    assert batch["all_BG"].shape == (2, 2, 12) and (batch["all_BG"] == index).all()
    assert batch["row_B"].tolist() == index.reshape(2, 6)[:, 2:4].tolist()


@pytest.mark.parametrize(("name", "vocab_size", "refused"), [
    ("tokens_BL", 10, False), ("tokens_BL", 9, True), ("source_tokens_BS", 9, True), ("targets_BL", 9, False), ("tokens_BL", None, False),
])  # fmt: skip
def test_ids_that_the_model_has_no_row_for(
    name: str, vocab_size: int | None, refused: bool, tmp_path: pathlib.Path
) -> None:
    """Ids 0 and 9: 10 rows are enough, 9 are not; targets and positions are not rows of the table."""

    class Ids(Numbers):
        def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
            return {name: np.array([[0, 9]] * len(index_B))}

    limits = {} if vocab_size is None else {"vocab_size": vocab_size}
    feed = BatchBuilder(Ids(4), 2, 0, slice(None), None, store=tmp_path / "train", **limits)
    if refused:
        with pytest.raises(DamagedStore, match="has id 9 in a batch, but the model has 9 ids"):
            feed(0)
    else:
        assert feed(0)[name].max() == 9


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        ([200, 10, 200, 10, 200, 10, 30], [256, 256, 256, 256]),  # the last batch alone is short
        ([500, 10, *[100, 10] * 12, 30], [512, *[128] * 13]),  # saves 13 x 3 / 4 batches of 512
    ],
)
def test_evaluation_batches_have_one_length_or_two(lengths: list[int], widths: list[int]) -> None:
    class Wide(Numbers):
        def example_lengths(self) -> np.ndarray:
            return np.array(lengths)

        def part_of_batch(self, epoch_B: np.ndarray, index_B: np.ndarray, index_G: np.ndarray) -> dict[str, np.ndarray]:
            return {"row_B": index_B, "width_1": np.array([padded_length(max(lengths[i] for i in index_G))])}

    feed = BatchBuilder(Wide(len(lengths)), 2, 0, slice(None), None)
    batches = [feed(number) for number in range(len(widths))]
    assert [int(batch["width_1"][0]) for batch in batches] == widths
    rows = np.concatenate([batch["row_B"] for batch in batches])
    assert rows[rows >= 0].tolist() == list(range(len(lengths)))
