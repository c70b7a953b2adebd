"""The unigram baseline against frequencies counted over all training rows by hand."""

from __future__ import annotations

import collections
import math
import pathlib
import types

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.sampler import BatchBuilder
from lm_research.data.store import TokenStore
from lm_research.objectives import OBJECTIVES
from lm_research.run import evaluator

SIZE = 16  # rows of a batch


def pairs(folder: pathlib.Path, seed: int, count: int) -> TokenStore:
    """Documents of two sentences; the second has words that are rare in the first."""
    rng = np.random.default_rng(seed)
    texts = [
        [
            rng.choice([*range(5, 40), *range(5, 12)], rng.integers(4, 14)).tolist(),
            rng.choice([*range(38, 50)], rng.integers(3, 10)).tolist(),
        ]
        for _ in range(count)
    ]
    return tiny.store(folder, texts)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_special_tokens_count_once_per_prediction(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tokenizer = few.setting(name), few.Words(sentinels=8)
    objective = OBJECTIVES[name](config, tokenizer)
    train, held = pairs(tmp_path / "train", 0, 500), pairs(tmp_path / "held", 1, 60)

    def counted(rows: dict[str, np.ndarray]) -> collections.Counter:
        (key,) = (key for key in rows if key.startswith("targets_"))
        weights = rows[key.replace("targets", "weights")]
        return collections.Counter(rows[key][weights > 0].tolist())

    examples, shown = objective.examples(train, "train"), objective.examples(held, "validation")
    often, seen = collections.Counter(), counted(few.epoch(shown))
    for number in range(8):  # each epoch predicts other tokens
        often += counted(few.epoch(examples, number))
    share = {token: often[token] / sum(often.values()) for token in often}
    expected = -sum(count * math.log(share[token]) for token, count in seen.items()) / sum(seen.values())

    def found(processes: int) -> float:
        """The result of each of that many processes, each with its rows of a batch."""
        feeds = [
            BatchBuilder(shown, SIZE, 0, slice(i * SIZE // processes, (i + 1) * SIZE // processes), None)
            for i in range(processes)
        ]
        numbers = range(-(-shown.num_examples // SIZE))
        others = [evaluator.count_targets(map(feed, numbers), few.VOCAB) for feed in feeds[1:]]
        monkeypatch.setattr(evaluator, "sum_over_processes", lambda counts, what: counts + sum(others))
        corpus = types.SimpleNamespace(tokenizer=tokenizer, train=train)
        state = types.SimpleNamespace(corpus=corpus, trainable=objective, feed=feeds[0], num_batches=len(numbers))
        return evaluator.Evaluator._unigram_nats(state, examples)

    assert found(1) == pytest.approx(expected, abs=0.02) and found(1) < math.log(few.VOCAB)
    assert found(1) == found(2) == found(4)
