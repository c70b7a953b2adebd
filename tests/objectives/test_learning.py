"""Every objective with a family it trains: a few real steps lower its loss, and its rows are a function of their numbers."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.store import TokenStore
from lm_research.objectives import OBJECTIVES

CASES = [
    ("masked_lm", "bert", dict(sentence_pair="next_sentence")),
    ("masked_lm", "roberta", dict(sentence_pair="none", masking="whole_word")),
    ("masked_lm", "albert", dict(sentence_pair="sentence_order", masking="ngram", max_span_length=3)),
    ("replaced_token", "electra", dict(generator_size=0.5)),
    ("causal_lm", "gpt2", {}),
    ("prefix_lm", "llama", {}),
    ("span_corruption", "t5", {}),
    ("denoising", "bart", {}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Sentences that count upwards from a random word, so that there is something to learn."""
    rng = np.random.default_rng(0)
    texts = [
        [((rng.integers(0, 40) + np.arange(rng.integers(2, 9))) % 40 + 5).tolist() for _ in range(rng.integers(2, 8))]
        for _ in range(80)
    ]
    return tiny.store(tmp_path_factory.mktemp("store"), texts)


@pytest.mark.parametrize(("name", "family", "objective"), CASES)
def test_a_few_steps_lower_the_loss(name: str, family: str, objective: dict[str, Any], store: TokenStore) -> None:
    config = few.setting(
        name,
        family,
        model=dict(num_layers=1),
        objective=objective,
        optimizer=dict(learning_rate=1e-2),
        schedule=dict(name="constant"),
        train=dict(batch_size=16),
    )
    seen = few.losses(config, few.examples(config, store, few.Words(sentinels=8)), 25)
    terms = [step["mlm_loss_nats" if "mlm_loss_nats" in step else "lm_loss_nats"] for step in seen]
    assert np.isfinite([step["loss_nats"] for step in seen]).all()
    # It begins near ln 64 = 4.2 nats a token; 40 words that occur give ln 40 = 3.7.
    assert 3.5 < terms[0] < 5.5
    assert np.mean(terms[-5:]) < terms[0] - 0.3
    assert np.mean([step["loss_nats"] for step in seen[-5:]]) < seen[0]["loss_nats"]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("packing", [False, True])
def test_rows_are_a_function_of_seed_epoch_and_index(name: str, packing: bool, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    texts = [[rng.integers(5, 40, rng.integers(1, 9)).tolist() for _ in range(2)] for _ in range(60)]
    store = tiny.store(tmp_path, texts)
    objective = dict(sentence_pair="none") if packing and name == "masked_lm" else {}
    if name == "span_corruption":  # a text with only one span always has it at its end
        objective |= dict(mask_rate=0.3, mean_span_length=1.0)

    def make(seed: int = 0) -> Any:
        config = few.setting(name, objective=objective, data=dict(packing=packing), seed=seed)
        return few.examples(config, store, few.Words(sentinels=8))

    rows = make()
    whole = [few.epoch(rows, number) for number in (0, 1)]
    order = rng.permutation(2 * rows.num_examples)[:20]
    epoch, index = order // rows.num_examples, order % rows.num_examples
    mixed = make().batch(epoch, index)
    for field, value in mixed.items():
        expected = np.stack([whole[e][field][i] for e, i in zip(epoch, index, strict=True)])
        np.testing.assert_array_equal(value, expected, err_msg=field)
    # An index of -1 means no row at all.
    holed = rows.batch(np.zeros(3, int), np.array([1, -1, 2]))
    for field, value in holed.items():
        np.testing.assert_array_equal(value[[0, 2]], whole[0][field][[1, 2]], err_msg=field)
    assert (
        not holed["segments_BL"][1].any()
        and not holed["weights_BM" if "weights_BM" in holed else "weights_BL"][1].any()
    )
    nothing = rows.batch(np.zeros(2, int), np.full(2, -1))
    for field, value in nothing.items():
        assert value.shape[1:] == whole[0][field].shape[1:] and (field == "noise_B" or (value == holed[field][1]).all())
    if name != "seq2seq":  # whose pairs never change
        for other in (whole[1], few.epoch(make(seed=1))):
            assert any((other[field] != whole[0][field]).any() for field in other)
