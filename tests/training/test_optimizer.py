"""Learning rates against arithmetic; what decays; the optimizer's state as a plain dict."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import tiny
from lm_research.config import Config, resolve
from lm_research.training.optimizer import OPTIMIZERS, decays, make_optimizer
from lm_research.training.schedules import make_schedule, warmup_steps
from lm_research.training.state import optimizer_from_dict, optimizer_to_dict


def run(name: str, steps: int, warmup: int = 0, end: float = 0.0, peak: float = 2.0, ratio: float = 0.0) -> Config:
    return resolve(
        {
            "optimizer": {"learning_rate": peak},
            "schedule": {"name": name, "warmup_steps": warmup, "warmup_ratio": ratio}
            | ({"end_ratio": end} if end else {}),
            "train": {"num_steps": steps},
        }
    )


def rates(config: Config, steps: int) -> list[float]:
    return [float(make_schedule(config)(step)) for step in range(steps)]


def test_linear() -> None:
    """4 steps up to 2, then 6 equal steps down that would reach 0 at step 10, after the last."""
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2 * 5 / 6, 2 * 4 / 6, 2 * 3 / 6, 2 * 2 / 6, 2 * 1 / 6]
    assert rates(run("linear", 10, warmup=4), 10) == pytest.approx(expected)
    assert rates(run("linear", 10, warmup=4), 12)[10:] == [0.0, 0.0]


def test_linear_to_a_fraction_of_the_peak() -> None:
    """From 2 to 2 x 0.25 = 0.5 in 4 steps: 0.375 less each."""
    assert rates(run("linear", 4, end=0.25), 6) == pytest.approx([2.0, 1.625, 1.25, 0.875, 0.5, 0.5])


def test_cosine() -> None:
    """Half of 1 + cos at 0, 45, 90 and 135 degrees, between the peak and a tenth of it."""
    shape = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]
    assert rates(run("cosine", 4), 5) == pytest.approx([2 * x for x in shape], abs=1e-6)
    assert rates(run("cosine", 4, end=0.1), 5) == pytest.approx([2 * (0.1 + 0.9 * x) for x in shape], abs=1e-6)


def test_constant() -> None:
    assert rates(run("constant", 5, warmup=2), 6) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_shapes(name: str) -> None:
    """Never negative, never above the peak, which the last step of warm-up reaches; all warm-up is allowed."""
    found = rates(run(name, 50, warmup=7, peak=3e-4), 60)
    assert 0 <= min(found) and max(found) == pytest.approx(3e-4) and found[6] == pytest.approx(3e-4)
    assert rates(run(name, 3, warmup=3), 3) == pytest.approx([2 / 3, 4 / 3, 2.0])


def test_warmup_as_a_fraction() -> None:
    assert warmup_steps(run("linear", 30, ratio=0.1)) == 3
    assert warmup_steps(run("linear", 30, warmup=5)) == 5
    assert rates(run("linear", 30, ratio=0.1), 30) == rates(run("linear", 30, warmup=3), 30)


def test_papers_schedules() -> None:
    """BERT: 10,000 steps up to 1e-4, then down to 0 over 990,000 (Devlin et al. 2018, A.2)."""
    schedule = make_schedule(run("linear", 1_000_000, warmup=10_000, peak=1e-4))
    for step, share in ((0, 1e-4), (4_999, 0.5), (9_999, 1.0), (505_000, 0.5), (999_999, 1 / 990_000)):
        assert float(schedule(step)) == pytest.approx(1e-4 * share, rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_and_tables_decay_biases_and_norms_do_not(family: str) -> None:
    """An update of zero gradients is only the decay: 0.1 x parameter, or nothing."""
    definition = tiny.model(family)
    params = tiny.random_params(definition)
    optimizer = make_optimizer(OPTIMIZERS.make("adamw", weight_decay=0.1, clip_norm=0.0))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tiny.jit(lambda params: optimizer.update(zeros, optimizer.init(params), params))(params)
    decayed, kept = set(), set()
    for (path, update), value in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True
    ):
        assert np.allclose(update, 0.1 * value) or not np.any(update)
        (decayed if np.any(update) else kept).add(path[-1].key)
        assert np.any(update) == decays(path, value)
    assert kept == {"bias", "scale"}
    assert decayed == {"kernel", "tokens", "positions"} | ({"types"} if family == "bert" else set())


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_state_is_a_plain_dict_and_back(clip_norm: float, weight_decay: float) -> None:
    params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    optimizer = make_optimizer(OPTIMIZERS.make("adamw", clip_norm=clip_norm, weight_decay=weight_decay))
    template = jax.eval_shape(optimizer.init, params)
    _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    fields = optimizer_to_dict(state)
    assert set(fields) == {"count", "mu", "nu"}
    assert jax.tree.structure(fields["mu"]) == jax.tree.structure(params)
    back = optimizer_from_dict(template, fields)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True))


def test_direction_matches_optax_adamw() -> None:
    """With the learning rate outside, three updates equal optax.adamw's, which has it inside."""
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    section = OPTIMIZERS.make("adamw", learning_rate=0.1, clip_norm=0.0, weight_decay=0.3)
    ours, theirs = (
        make_optimizer(section),
        optax.adamw(0.1, 0.9, 0.999, 1e-6, weight_decay=0.3, mask={"kernel": True, "bias": False}),
    )
    state_a, state_b = ours.init(params), theirs.init(params)
    for number in range(3):
        gradient = jax.tree.map(lambda x, n=number: jnp.sin(x + n), params)
        a, state_a = ours.update(gradient, state_a, params)
        b, state_b = theirs.update(gradient, state_b, params)
        for name in params:
            assert np.allclose(-0.1 * a[name], b[name], rtol=1e-6)
        params = optax.apply_updates(params, b)


def test_polynomial() -> None:
    """(1 - fraction done)^3 at 0, 1/4, 1/2, 3/4, from 2 down to a tenth of it."""
    config = resolve(
        {
            "optimizer": {"learning_rate": 2.0},
            "train": {"num_steps": 4},
            "schedule": {"name": "polynomial", "power": 3.0, "end_ratio": 0.1},
        }
    )
    assert rates(config, 5) == pytest.approx([2 * (0.1 + 0.9 * x**3) for x in (1.0, 0.75, 0.5, 0.25, 0.0)])


def test_inverse_square_root() -> None:
    """Vaswani et al. 2017, section 5.3: min(n / warmup, sqrt(warmup / n)) of the peak at step n = 1, 2, ..."""
    expected = [2 * min(n / 4, math.sqrt(4 / n)) for n in range(1, 13)]
    assert rates(run("inverse_sqrt", 100, warmup=4), 12) == pytest.approx(expected)


def test_warmup_stable_decay() -> None:
    """20 steps: 2 up, then the peak until 5 are left (a quarter), which fall by a fifth of the peak each."""
    config = resolve(
        {
            "optimizer": {"learning_rate": 2.0},
            "train": {"num_steps": 20},
            "schedule": {"name": "wsd", "warmup_steps": 2, "decay_ratio": 0.25},
        }
    )
    assert rates(config, 21) == pytest.approx([1.0] + [2.0] * 15 + [1.6, 1.2, 0.8, 0.4, 0.0], abs=1e-6)


OTHERS = {
    "lamb": (lambda: optax.lamb(0.1, 0.9, 0.999, 1e-6, weight_decay=0.3, mask={"kernel": True, "bias": False}), {}),
    "lion": (
        lambda: optax.lion(0.1, 0.9, 0.99, weight_decay=0.3, mask={"kernel": True, "bias": False}),
        {"beta2": 0.99},
    ),
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), {"weight_decay": 0.0}),
    "adafactor": (
        lambda: optax.adafactor(
            0.1, min_dim_size_to_factor=128, multiply_by_parameter_scale=False, weight_decay_rate=None, momentum=None
        ),
        {"weight_decay": 0.0},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_directions_match_optax(name: str) -> None:
    """Three updates of arrays that are not stacked layers equal optax's own optimizer, which has the learning rate inside."""
    make, section = OTHERS[name]
    params = {"kernel": jnp.sin(jnp.arange(130.0 * 140).reshape(130, 140)), "bias": jnp.array([3.0, -1.0])}
    ours = make_optimizer(OPTIMIZERS.make(name, **{"clip_norm": 0.0, "weight_decay": 0.3, **section}))
    theirs = make()
    state_a, state_b = ours.init(params), theirs.init(params)
    for number in range(3):
        gradient = jax.tree.map(lambda x, n=number: jnp.cos(3 * x + n), params)
        a, state_a = ours.update(gradient, state_a, params)
        b, state_b = theirs.update(gradient, state_b, params)
        for key in params:
            np.testing.assert_allclose(-0.1 * a[key], b[key], rtol=2e-5, atol=1e-6)
        params = optax.apply_updates(params, b)


@pytest.mark.parametrize("name", ["lamb", "adafactor"])
def test_stacked_layers_are_layers(name: str) -> None:
    """Norms are taken per layer: two stacked layers change as they do separately."""
    section = OPTIMIZERS.make(name, clip_norm=0.0, weight_decay=0.0)
    apart = [{"kernel": scale * jnp.sin(jnp.arange(12.0).reshape(3, 4))} for scale in (1.0, 5.0)]
    stacked = {"layers": jax.tree.map(lambda *x: jnp.stack(x), *apart)}
    optimizer = make_optimizer(section)

    def move(params: dict) -> dict:
        gradient = jax.tree.map(lambda x: jnp.cos(2 * x), params)
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    together = move(stacked)["layers"]["kernel"]
    for number, params in enumerate(apart):
        np.testing.assert_allclose(together[number], move(params)["kernel"], rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "lamb", "lion", "muon", "sgd"])
def test_each_optimizer_lowers_a_loss_and_keeps_a_plain_state(name: str) -> None:
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    optimizer = make_optimizer(OPTIMIZERS.make(name, weight_decay=0.0))
    template, state = jax.eval_shape(optimizer.init, params), optimizer.init(params)

    def loss(params):
        return sum(jnp.square(x - 0.5).sum() for x in jax.tree.leaves(params))

    before = float(loss(params))
    for _ in range(20):
        direction, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(lambda p, d: p - 0.02 * d, params, direction)
        state = optimizer_from_dict(template, optimizer_to_dict(state))
    assert float(loss(params)) < 0.8 * before


CHAINS = {
    "two counters": lambda: optax.chain(
        optax.scale_by_adam(), optax.scale_by_schedule(lambda count: 1.0 / (1 + count))
    ),
    "two of all": lambda: optax.chain(optax.scale_by_adam(), optax.scale_by_lion(), optax.trace(0.5), optax.trace(0.9)),
    "parts by name": lambda: optax.partition(
        {"a": optax.scale_by_adam(), "b": optax.trace(0.9)}, {"kernel": "a", "bias": "b"}
    ),
    "masked": lambda: optax.masked(optax.scale_by_adam(), {"kernel": True, "bias": False}),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.trace)(decay=lambda count: 0.9),
    "a wrapper": lambda: optax.apply_if_finite(optax.scale_by_rms(), 3),
    "nothing": optax.identity,
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_state_of_any_chain_round_trips_as_a_plain_dict(name: str) -> None:
    """optimizer_to_dict loses nothing: whatever optax keeps is restored in its place."""
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.arange(3.0)}
    optimizer = CHAINS[name]()
    state = optimizer.update(params, optimizer.init(params), params)[1]
    fields = optimizer_to_dict(state)
    assert all(isinstance(node, dict) for node in (fields, *(x for x in fields.values() if not hasattr(x, "shape"))))
    back = optimizer_from_dict(jax.eval_shape(optimizer.init, params), fields)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    if name == "two counters":
        assert fields.keys() == {"count", "mu", "nu", "count_2"}
