"""The update against NumPy; accumulation; steps that are not finite; the window of metrics."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import DEFINITION, Regression, Trainer, batch, config, first_params, first_state

from helpers import tiny
from lm_research.config import Config
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, window_means, window_zeros
from lm_research.training.step import make_train_step


def flat(params: dict) -> np.ndarray:
    """The toy's parameters as one vector: kernel, then bias."""
    return np.append(np.asarray(params["layer"]["kernel"], np.float64), np.float64(params["layer"]["bias"]))


def gradient(theta: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Gradient and value of sum w (x k + b - t)^2 / sum w over the whole batch."""
    x, t, w = (arrays[name].reshape(-1, *arrays[name].shape[2:]) for name in ("tokens_BL", "targets", "weights"))
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    errors = inputs @ theta - t
    return 2 * (w * errors) @ inputs / w.sum(), float((w * errors**2).sum() / w.sum())


def reference(config: Config, batches: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """AdamW as in Loshchilov & Hutter 2017, algorithm 2, after global-norm clipping; and the averaged parameters."""
    o, decay = config.optimizer, config.train.ema_decay
    theta = flat(first_params())
    average, m, v = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
    decayed = np.array([1.0, 1.0, 1.0, 0.0])  # not the bias
    for number, arrays in enumerate(batches):
        g, _ = gradient(theta, arrays)
        norm = np.linalg.norm(g)
        if o.clip_norm and norm > o.clip_norm:
            g = g * o.clip_norm / norm
        m = o.beta1 * m + (1 - o.beta1) * g
        v = o.beta2 * v + (1 - o.beta2) * g * g
        m_hat, v_hat = m / (1 - o.beta1 ** (number + 1)), v / (1 - o.beta2 ** (number + 1))
        rate = o.learning_rate * (1 - number / config.train.num_steps)  # linear to 0, no warm-up
        theta = theta - rate * (m_hat / (np.sqrt(v_hat) + o.epsilon) + o.weight_decay * decayed * theta)
        average = decay * average + (1 - decay) * theta
    return theta, average


@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"clip_norm": 0.0},
        {"clip_norm": 0.5, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3},
        {"weight_decay": 0.0, "clip_norm": 1e9},
    ],
    ids=["default", "unclipped", "all other values", "plain Adam"],
)
def test_update_and_average_against_numpy(optimizer: dict) -> None:
    settings = config(optimizer={"learning_rate": 0.1, **optimizer}, train={"num_steps": 10, "ema_decay": 0.7})
    trainer, batches = Trainer(settings), [batch(number) for number in range(10)]
    for arrays in batches:
        trainer.step(arrays)
    theta, average = reference(settings, batches)
    assert flat(trainer.state["params"]) == pytest.approx(theta, abs=1e-5)
    assert flat(trainer.state["ema"]) == pytest.approx(average, abs=1e-5)
    assert int(trainer.state["step"]) == int(trainer.state["optimizer"]["count"]) == 10


def test_clipping_scales_the_whole_gradient() -> None:
    """One step from zero moments: Adam's direction is g / (|g| + e), so a large e shows the gradient's size."""
    arrays = batch(3)
    g, _ = gradient(flat(first_params()), arrays)
    assert np.linalg.norm(g) > 0.25
    for clip, expected in ((0.25, 0.25), (1e6, np.linalg.norm(g))):
        section = {"clip_norm": clip, "epsilon": 1e4, "weight_decay": 0.0, "learning_rate": 1.0}
        trainer = Trainer(config(optimizer=section, schedule={"name": "constant"}))
        moved = flat(trainer.step(arrays)["params"]) - flat(first_params())
        assert np.linalg.norm(moved) * 1e4 == pytest.approx(expected, rel=5e-3)
        assert moved / np.linalg.norm(moved) == pytest.approx(-g / np.linalg.norm(g), abs=5e-3)
        assert float(trainer.state["window"]["grad_norm"]) == pytest.approx(np.linalg.norm(g), rel=1e-5)  # before it


def test_without_average_there_is_none() -> None:
    assert "ema" not in Trainer(config()).state


def test_accumulated_micro_batches_are_weighted_by_their_tokens() -> None:
    """Any division of a batch gives the same step, though weights fall unevenly and one micro-batch has none."""
    whole = batch(5)
    whole["weights"][0, 4:6] = 0.0
    results = []
    for accumulation in (1, 2, 4):
        trainer = Trainer(config(train={"accumulation_steps": accumulation}))
        divided = {name: value.reshape(accumulation, -1, *value.shape[2:]) for name, value in whole.items()}
        if accumulation == 4:
            assert divided["weights"][2].sum() == 0
        trainer.step(divided)
        results.append((flat(trainer.state["params"]), window_means(trainer.objective, trainer.state["window"])))
    for params, means in results[1:]:
        assert params == pytest.approx(results[0][0], rel=1e-5)
        assert means == pytest.approx(results[0][1], rel=1e-5)


def test_first_state() -> None:
    """The tests' shortcut equals the initial state of a run."""
    settings = config(train={"ema_decay": 0.5})
    begun, ours = (
        init_state(DEFINITION, make_optimizer(settings.optimizer), settings, Regression()),
        first_state(settings),
    )
    assert jax.tree.structure(begun) == jax.tree.structure(ours) and identical(begun, ours)


def test_window_means_are_weighted_by_tokens() -> None:
    """Three batches at a learning rate of 0: the mean over all weights, not the mean of means."""
    trainer = Trainer(config(optimizer={"learning_rate": 0.0}))
    batches = [batch(number) for number in range(3)]
    batches[1]["weights"] *= 100
    squares, weights, norms = [], [], []
    for arrays in batches:
        trainer.step(arrays)
        g, mean = gradient(flat(first_params()), arrays)
        squares.append(mean * arrays["weights"].sum())
        weights.append(arrays["weights"].sum())
        norms.append(np.linalg.norm(g))
    means = window_means(trainer.objective, trainer.state["window"])
    assert means["loss_nats"] == means["square"] == pytest.approx(sum(squares) / sum(weights), rel=1e-5)
    assert means["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert set(means) == {"loss_nats", "square", "error", "grad_norm"}
    assert float(trainer.state["window"]["steps"]) == 3
    assert not any(float(value) for value in window_zeros(trainer.objective).values())


def poison(number: int, where: str) -> dict[str, np.ndarray]:
    arrays = batch(number)
    if where == "gradient":  # the loss, about 1e37, is finite; the gradient of about 1e38 has no norm in float32
        arrays["tokens_BL"][0, 0] = [1e19, 0.0, 0.0]
    else:
        arrays["targets"][0, 0] = {"nan": math.nan, "inf": math.inf}[where]
    return arrays


def numbers(tree: dict) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def identical(a: dict, b: dict) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))


@pytest.mark.parametrize("where", ["nan", "inf", "gradient"])
def test_stop_keeps_the_previous_state_and_stays_stopped(where: str) -> None:
    trainer = Trainer(config(train={"ema_decay": 0.5}))
    for number in range(3):
        before = trainer.step(batch(number))
    after = trainer.step(poison(3, where))
    assert int(after["halted"]) == 3 and int(after["step"]) == 3
    later = trainer.step(batch(4))
    assert int(later["halted"]) == 3
    for state in (after, later):
        assert identical({**state, "halted": 0}, {**before, "halted": 0})


@pytest.mark.parametrize("where", ["nan", "inf", "gradient"])
def test_skip_leaves_out_one_update_and_counts_it(where: str) -> None:
    trainer = Trainer(config(train={"ema_decay": 0.5, "on_nonfinite": "skip"}))
    trainer.step(batch(0))
    before = trainer.step(batch(1))
    means_before = window_means(trainer.objective, before["window"])
    after = trainer.step(poison(2, where))
    for name in ("params", "optimizer", "ema"):
        assert identical(after[name], before[name])
    assert (int(after["step"]), int(after["halted"])) == (3, -1)
    assert window_means(trainer.objective, after["window"]) == {**means_before, "skipped_steps": 1}
    last = trainer.step(batch(3))
    assert not identical(last["params"], before["params"])
    assert all(np.isfinite(x).all() for x in numbers(last))
    assert window_means(trainer.objective, last["window"])["skipped_steps"] == 1


def test_a_window_without_tokens() -> None:
    """Nothing divided by nothing is 0: a step took place, and counted no token."""
    objective = Regression()
    assert window_means(objective, window_zeros(objective) | {"steps": 1.0})["square"] == 0.0


def test_a_window_of_only_skipped_steps() -> None:
    trainer = Trainer(config(train={"on_nonfinite": "skip"}))
    for number in range(2):
        trainer.step(poison(number, "nan"))
    means = window_means(trainer.objective, trainer.state["window"])
    assert means.pop("skipped_steps") == 2
    assert set(means) == {"loss_nats", "square", "error", "grad_norm"} and all(map(math.isnan, means.values()))


def test_learning_rate_follows_the_step_number_even_after_a_skip() -> None:
    """With warm-up 4 the third batch is step 2, of rate 3/4, whether the second was skipped or not."""
    optimizer = {"weight_decay": 0.0, "epsilon": 1e4, "clip_norm": 0.0, "beta1": 0.0, "learning_rate": 1.0}
    settings = config(optimizer=optimizer, schedule={"warmup_steps": 4}, train={"on_nonfinite": "skip"})
    for second in (batch(1), poison(1, "nan")):
        trainer = Trainer(settings)
        trainer.step(batch(0))
        before = flat(trainer.step(second)["params"])
        moved = flat(trainer.step(batch(2))["params"]) - before
        g, _ = gradient(before, batch(2))
        assert moved * 1e4 == pytest.approx(-0.75 * g, rel=2e-2)


class Spy(Regression):
    """Add the bits of the key that the step passes to its objective to its metrics."""

    metrics = {**Regression.metrics, "key": "tokens"}

    def metric_sums(self, model: dict, batch: dict, key: jax.Array) -> dict:
        word = jax.random.key_data(key)[1] >> 8  # 24 bits: exact in float32
        return super().metric_sums(model, batch, key) | {"key": word.astype(jnp.float32)}


def test_dropout_key_depends_only_on_step_and_seed() -> None:
    """Another for each step and seed, and the same after a restart in the middle."""
    settings = config()
    optimizer, schedule = make_optimizer(settings.optimizer), make_schedule(settings)
    step = tiny.jit(make_train_step(Spy(), DEFINITION, optimizer, schedule, settings))

    def keys(seed: int, first: int, last: int) -> list[float]:
        state = first_state(settings) | {"seed": np.uint32(seed), "step": np.int32(first)}
        found = []
        for number in range(first, last):
            state["window"] = {name: np.float32(0) for name in [*state["window"], "key"]}
            state = step(state, batch(number))
            found.append(float(state["window"]["key"]))
        return found

    first = keys(1, 0, 4)
    assert len(set(first)) == 4
    assert keys(1, 2, 4) == first[2:]
    assert not set(keys(2, 0, 4)) & set(first)


def test_micro_batches_have_separate_dropout_keys() -> None:
    """Equal keys counted with the sign of their micro-batch would cancel."""

    class Signs(Spy):
        def metric_sums(self, model: dict, batch: dict, key: jax.Array) -> dict:
            found = super().metric_sums(model, batch, key)
            return found | {"key": found["key"] * batch["sign"][0]}

    settings = config(train={"accumulation_steps": 2})
    step = tiny.jit(
        make_train_step(Signs(), DEFINITION, make_optimizer(settings.optimizer), make_schedule(settings), settings)
    )
    state = first_state(settings)
    state["window"] |= {"key": np.float32(0)}
    given = batch(0, accumulation=2) | {"sign": np.array([[1.0], [-1.0]], np.float32)}
    assert step(state, given)["window"]["key"] != 0


@pytest.mark.parametrize("seed", [0, 3, 2**31 - 1])
def test_a_seed_given_as_an_argument_makes_the_same_parameters(seed: int) -> None:
    settings = tiny.config("gpt2", seed=seed)
    definition = tiny.model("gpt2")
    objective, optimizer = Regression(), make_optimizer(settings.optimizer)
    state = tiny.jit(lambda seed: init_state(definition, optimizer, settings, objective, seed))(np.uint32(seed))
    assert identical(state["params"], tiny.jit(lambda: definition.init(seed))()) and int(state["seed"]) == seed


def test_a_peak_given_as_an_argument_makes_the_same_step_and_one_program_of_all_rates() -> None:
    slow, fast = (config(optimizer={"learning_rate": rate}, schedule={"warmup_steps": 2}) for rate in (0.1, 0.7))
    steps = [
        tiny.jit(make_train_step(Regression(), DEFINITION, make_optimizer(c.optimizer), make_schedule(c), c))
        for c in (slow, fast)
    ]
    programs = {step.lower(first_state(slow), batch(0), peak=np.float32(0.1)).as_text() for step in steps}
    assert len(programs) == 1
    own, given = steps[1](first_state(fast), batch(0)), steps[0](first_state(fast), batch(0), peak=np.float32(0.7))
    np.testing.assert_allclose(flat(given["params"]), flat(own["params"]), rtol=1e-6)
    assert not np.allclose(flat(given["params"]), flat(steps[0](first_state(slow), batch(0))["params"]), rtol=1e-3)
