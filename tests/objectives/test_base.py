"""The contract of every objective: how losses are weighted, and which models it can train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import few, tiny
from helpers.dropout_keys import drawn_from
from lm_research.errors import ConfigError
from lm_research.objectives import OBJECTIVES, build_objective, define
from lm_research.objectives.base import Objective
from lm_research.objectives.masked_lm import encode
from lm_research.training.step import loss_and_gradient

ROWS = 8


def uneven_batch(family: str, folder: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """An objective and eight rows that hold very different numbers of real and predicted tokens; two are empty."""
    config = tiny.config(
        family, model=dict(num_layers=1), objective=dict(short_seq_prob=0.5) if family == "bert" else {}
    )
    objective = build_objective(config, tiny.WordTokenizer(), tiny.model(family).arch)
    store = tiny.store(folder, tiny.documents(seed=2, count=12, sentences=(1, 8)))
    examples = objective.examples(store, "validation")
    last = examples.num_examples - 1
    return objective, examples.batch(np.zeros(ROWS, int), np.array([0, 1, 2, 3, last, 4, -1, -1]))


@pytest.mark.parametrize("name", ["causal_lm", "prefix_lm", "seq2seq", "masked_lm"])
def test_smoothed_labels_are_a_term_of_the_loss(name: str, tmp_path: Any) -> None:
    """The loss is optax's cross-entropy with 0.8 of the probability on the target and 0.2 spread evenly; the plain one is reported."""
    plain, config = few.setting(name), few.setting(name, objective=dict(label_smoothing=0.2))
    words = few.Words(tiny.VOCAB, sentinels=8)
    texts = [document[:2] for document in tiny.documents(0, 40, (2, 3), (2, 5))]
    rows = few.examples(config, tiny.store(tmp_path, texts), words, "validation")
    batch = rows.batch(np.zeros(4, int), np.arange(4))
    definition = define(config, tiny.VOCAB)
    params = tiny.random_params(definition)
    smoothed, other = (build_objective(one, words, definition.arch) for one in (config, plain))

    @tiny.jit
    def run(params: Any) -> tuple:
        model, totals = definition.bind(params), smoothed.normalizers(batch)
        sums = smoothed.metric_sums(model, batch, None)
        if name == "masked_lm":
            x_BLD = encode(model, batch, batch["tokens_BL"], None)
            logits = model.predict_tokens(x_BLD, batch["mask_positions_BM"]).logits()
        else:
            logits = smoothed.projection(model, batch, None).logits()
        targets, weights = smoothed.targets(batch)
        labels = 0.8 * jax.nn.one_hot(targets, logits.shape[-1]) + 0.2 / logits.shape[-1]
        expected = (weights * optax.softmax_cross_entropy(logits, labels)).sum() / totals["tokens"]
        rest = {term: sums[term] / totals[smoothed.metrics[term]] for term in other.loss_terms}
        return smoothed.loss(sums, totals), expected, rest, other.loss(other.metric_sums(model, batch, None), totals)

    loss, expected, rest, unsmoothed = run(params)
    expected += sum(value for term, value in rest.items() if term not in ("lm_loss_nats", "mlm_loss_nats"))
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert float(sum(rest.values())) == pytest.approx(float(unsmoothed), rel=1e-5) and abs(loss - unsmoothed) > 1e-5


@pytest.mark.parametrize(("family", "counts"), [("bert", [4]), ("gpt2", [2, 4])])
def test_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(family: str, counts: list, tmp_path: Any) -> None:
    objective, batch = uneven_batch(family, tmp_path)
    definition = tiny.model(family, num_layers=1)
    params = tiny.random_params(definition)
    weights = batch["weights_BM" if family == "bert" else "weights_BL"]
    assert weights.reshape(4, -1).sum(1).tolist()[-1] == 0 and len(set(weights.reshape(4, -1).sum(1))) > 2

    @tiny.jit
    def run(params: Any, batch: dict) -> tuple:
        return loss_and_gradient(objective, definition, params, batch, jax.random.key(0))

    def split(count: int) -> dict[str, np.ndarray]:
        return {name: value.reshape(count, -1, *value.shape[1:]) for name, value in batch.items()}

    loss, sums, totals, gradient = run(params, split(1))
    for count in counts:
        other = run(params, split(count))
        np.testing.assert_allclose(other[0], loss, rtol=1e-6)
        for name in sums:
            np.testing.assert_allclose(other[1][name], sums[name], rtol=1e-6, err_msg=name)
        assert jax.tree.map(float, other[2]) == jax.tree.map(float, totals)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other[3], gradient)
    by_hand = sum(float(sums[term]) / float(totals[objective.metrics[term]]) for term in objective.loss_terms)
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_totals_count_what_the_batch_holds(family: str, tmp_path: Any) -> None:
    objective, batch = uneven_batch(family, tmp_path)
    totals = jax.tree.map(float, objective.normalizers(batch))
    targets, weights = objective.targets(batch)
    assert totals["tokens"] == weights.sum() and totals["real"] == (batch["segments_BL"] > 0).sum()
    assert targets.shape == weights.shape
    assert totals.get("rows", 6.0) == 6.0
    assert (
        set(totals)
        == set(objective.normalizer_names)
        == set(objective.normalizer_names) | set(objective.metrics.values())
    )
    assert objective.token_loss_name in objective.loss_terms and set(objective.loss_terms) <= set(objective.metrics)
    shapes = {name: value.shape[1] for name, value in batch.items() if name.startswith("targets_")}
    assert list(shapes.values()) == [objective.target_fraction * 16]


def test_a_batch_of_nothing_has_a_loss_of_zero(tmp_path: Any) -> None:
    objective, batch = uneven_batch("bert", tmp_path)
    empty = {name: np.zeros_like(value) for name, value in batch.items()}
    sums = {name: np.float32(0) for name in objective.metrics}
    assert float(objective.loss(sums, objective.normalizers(empty))) == 0.0


class Spy:
    """A model that keeps the arguments of its parts."""

    def __init__(self) -> None:
        self.given: dict[str, tuple[tuple, dict]] = {}

    def encode(self, *args: Any, **options: Any) -> tuple[str, str]:
        self.given["encode"] = args, options
        return "states", "memory"

    def decoder(self, *args: Any, **options: Any) -> str:
        self.given["decoder"] = args, options
        return "states"

    def predict_tokens(self, states: str) -> str:
        return {"states": "projection"}[states]


@pytest.mark.parametrize("name", ["causal_lm", "prefix_lm", "span_corruption"])
def test_models_are_given_every_field_of_a_batch(name: str) -> None:
    objective, model = OBJECTIVES[name](few.setting(name), few.Words()), Spy()
    fields = ("tokens_BL", "segments_BL", "positions_BL")
    batch = {
        field: field
        for field in (*fields, "prefix_BL", "source_tokens_BS", "source_segments_BS", "source_positions_BS")
    }
    assert objective.projection(model, batch, None) == "projection"
    options = {"causal_lm": {}, "prefix_lm": {"prefix_BL": "prefix_BL"}, "span_corruption": {"memory": "memory"}}[name]
    assert model.given["decoder"] == (fields, {"dropout_key": None, **options})
    if name == "span_corruption":
        source = (
            ("source_tokens_BS", "source_segments_BS"),
            {"positions_BL": "source_positions_BS", "dropout_key": None},
        )
        assert model.given["encode"] == source
    objective.projection(model, batch, jax.random.key(0))
    assert all(options["dropout_key"] is not None for _, options in model.given.values())


@pytest.mark.parametrize(("name", "real"), [("causal_lm", 4), ("prefix_lm", 4), ("span_corruption", 4 + 1)])
def test_totals_by_hand(name: str, real: int) -> None:
    batch = {
        "segments_BL": np.array([[1, 2, 0], [1, 1, 0]]),
        "weights_BL": np.array([[1.0, 0.0], [1.0, 0.0]]),
        "source_segments_BS": np.array([[2, 0]]),
    }
    assert OBJECTIVES[name](few.setting(name), few.Words()).normalizers(batch) == {"tokens": 2, "real": real}


def test_objectives_without_tokens_have_no_targets() -> None:
    with pytest.raises(NotImplementedError):
        Objective.targets(OBJECTIVES["causal_lm"](few.setting("causal_lm"), few.Words()), {})


def test_a_single_token_or_none_divides_by_one() -> None:
    objective = OBJECTIVES["causal_lm"](few.setting("causal_lm"), few.Words())
    for tokens, loss in ((0.0, 3.0), (1.0, 3.0), (2.0, 1.5)):
        assert float(objective.loss({"lm_loss_nats": jnp.float32(3)}, {"tokens": jnp.float32(tokens)})) == loss


@pytest.mark.parametrize(
    ("objective", "family", "words"),
    [
        ("causal_lm", "bert", "kind decoder, but model.family=bert is of kind encoder"),
        ("masked_lm", "gpt2", "kind encoder, but model.family=gpt2 is of kind decoder"),
    ],
)
def test_an_objective_that_does_not_fit_the_model_is_refused(objective: str, family: str, words: str) -> None:
    config = tiny.config(family, objective=dict(name=objective))
    with pytest.raises(ConfigError, match=words) as refused:
        build_objective(config, tiny.WordTokenizer(), tiny.model(family).arch)
    assert f"--config.objective.name={tiny.OBJECTIVE[family]}" in str(refused.value)
    fitting = str(refused.value).rsplit("fitting: ", 1)[1].removesuffix(").").split(", ")
    assert "bart" not in fitting and ("gpt2" in fitting, "bert" in fitting) == (family == "bert", family == "gpt2")


# Embeddings; of each of two blocks the attention's probabilities and two branches, in decoders with an encoder two more; T5 drops the final
# states and the inner ones of a block too. ELECTRA is two encoders.
PLACES = {
    "replaced_token": 2 * (1 + 2 * 3),
    "causal_lm": 1 + 2 * 3,
    "span_corruption": 1 + 2 * 4 + 1 + 1 + 2 * 6 + 1,
    "denoising": 1 + 2 * 3 + 1 + 2 * 5,
}


@pytest.mark.parametrize("name", PLACES)
def test_no_two_places_share_a_dropout_key(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dict(dropout_rate=0.1, attention_dropout_rate=0.1)
    config = few.setting(name, model=model)
    objective, definition = OBJECTIVES[name](config, few.Words(sentinels=8)), define(config, few.VOCAB)
    store = tiny.store(tmp_path, tiny.documents(seed=2, count=8, sentences=(2, 3)))
    batch = objective.examples(store, "train").batch(np.zeros(4, int), np.arange(4))

    def sums(params: Any, key: Any) -> Any:
        return objective.metric_sums(definition.bind(params), jax.tree.map(jnp.asarray, batch), key)

    keys = drawn_from(monkeypatch, sums, definition.shapes)
    assert len(np.unique(keys, axis=0)) == len(keys) == PLACES[name]
