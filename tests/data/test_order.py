"""Which examples a step reads: every one once an epoch, the same whatever the number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from lm_research.data.order import Feed, eval_examples, train_examples


class Numbers:
    """Examples that say who they are: rows of (epoch, index)."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        return {"who_BL": np.stack([epoch_B, index_B], 1), "row_B": index_B}


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
    again = Feed(Numbers(size), batch_size, 1, slice(None), 0)(step)["who_BL"][0]
    assert again.tolist() == np.stack([epoch, index], 1).tolist()


def test_evaluation_reads_in_order_once() -> None:
    epoch, index = eval_examples(1, 4, 6)
    assert index.tolist() == [4, 5, -1, -1] and not epoch.any()
    feed = Feed(Numbers(6), 4, 0, slice(None), None)
    assert np.concatenate([feed(0)["row_B"], feed(1)["row_B"]]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


@pytest.mark.parametrize("accumulation", [0, 1, 3])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_the_processes_make_the_global_batch(processes: int, accumulation: int) -> None:
    batch_size, seed, step = 24, (3 if accumulation else None), 5
    micro = batch_size // max(1, accumulation)
    share = micro // processes
    slices = [slice(p * share, (p + 1) * share) for p in range(processes)]
    parts = [Feed(Numbers(100), batch_size, accumulation, rows, seed)(step) for rows in slices]
    axis = 1 if accumulation else 0
    whole = Feed(Numbers(100), batch_size, accumulation, slice(0, micro), seed)(step)
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis), value)
    epoch, index = train_examples(step, batch_size, 100, 3) if accumulation else eval_examples(step, batch_size, 100)
    assert whole["row_B"].reshape(-1).tolist() == index.tolist()
    assert whole["row_B"].shape == ((accumulation, micro) if accumulation else (micro,))
    assert whole["who_BL"].shape == (*whole["row_B"].shape, 2)
    assert whole["who_BL"][..., 0].reshape(-1).tolist() == epoch.tolist()


def test_accumulation_reads_the_same_examples() -> None:
    whole, split = (Feed(Numbers(100), 24, count, slice(None), 3)(7)["row_B"] for count in (1, 4))
    assert split.shape == (4, 6) and split.reshape(-1).tolist() == whole.reshape(-1).tolist()
