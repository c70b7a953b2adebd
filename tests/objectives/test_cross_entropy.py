"""The fused loss against the textbook one in float64, in value and gradient, in one slice and in several."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import tiny
from lm_research.models import cpu_products
from lm_research.models.heads import Projection
from lm_research.objectives import cross_entropy
from lm_research.objectives.causal_lm import NextTokenOfDecoder
from lm_research.objectives.cross_entropy import smoothing, token_loss

B, M, D, V = 3, 7, 6, 11  # 21 rows: in slices of 4 that makes 5 slices of 5, the last padded with 4 rows


def problem(seed: int = 0, m: int = M) -> tuple[np.ndarray, ...]:
    """hidden, table, bias, targets, weights; two positions weigh nothing, one weighs 2.5."""
    rng = np.random.default_rng(seed)
    weights = np.ones((B, m))
    weights[0, 2] = weights[2, 6] = 0.0
    weights[1, 1] = 2.5
    return rng.normal(size=(B, m, D)), rng.normal(size=(V, D)), rng.normal(size=V), rng.integers(0, V, (B, m)), weights


def reference(
    hidden: np.ndarray, table: np.ndarray, bias: np.ndarray, targets: np.ndarray, weights: np.ndarray, cap: float = 0.0
) -> dict:
    """Loss, correct and gradients from logits in float64; d loss / d logits = weight (softmax - one hot), times a cap's 1 - tanh^2."""
    logits, bend = hidden @ table.T + bias, 1.0
    if cap:
        bend, logits = 1 - np.tanh(logits / cap) ** 2, cap * np.tanh(logits / cap)
    logits -= logits.max(-1, keepdims=True)
    log_shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    shares = np.exp(log_shares)
    chosen = np.eye(V)[targets]
    slope = weights[..., None] * (shares - chosen) * bend
    return {
        "loss": -(weights * (log_shares * chosen).sum(-1)).sum(),
        "correct": (weights * (logits.argmax(-1) == targets)).sum(),
        "hidden": slope @ table,
        "table": np.einsum("bmv,bmd->vd", slope, hidden),
        "bias": slope.sum((0, 1)),
    }


def fused(arrays: tuple[np.ndarray, ...], dtype: type = jnp.float32, scale: float = 1.0, cap: float = 0.0) -> dict:
    """The same from `token_loss`, times `scale`."""
    hidden, table, bias, targets, weights = arrays

    def loss(hidden: jax.Array, table: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        total, correct = token_loss(
            Projection(hidden, table, bias, cap or None), jnp.asarray(targets), jnp.asarray(weights)
        )
        return scale * total, correct

    inputs = jnp.asarray(hidden, dtype), jnp.asarray(table, jnp.float32), jnp.asarray(bias, jnp.float32)
    function = tiny.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (total, correct), gradients = function(*inputs)
    return {"loss": total, "correct": correct, **dict(zip(("hidden", "table", "bias"), gradients, strict=True))}


@pytest.fixture(params=[512, 4, 1], ids=["one slice", "five slices", "a slice a row"])
def sliced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SLICE_ROWS", request.param)


@pytest.fixture(params=["cpu", "tpu"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss as it is computed on a platform."""
    for module in (cross_entropy, cpu_products):
        monkeypatch.setattr(module, "platform", lambda: request.param)


@pytest.mark.parametrize("cap", [0.0, 2.0], ids=["", "capped"])
def test_value_and_gradient_equal_the_textbook(sliced: None, place: None, cap: float) -> None:
    arrays = problem()
    got, expected = fused(arrays, cap=cap), reference(*arrays, cap)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_vocabulary_padded_for_a_gpu_changes_nothing(sliced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = problem()
    assert len(arrays[1]) % cross_entropy.ALIGNED_VOCAB_MULTIPLE
    monkeypatch.setattr(cross_entropy, "platform", lambda: "gpu")
    got, expected = fused(arrays), reference(*arrays)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("devices", "length"), [(1, 7), (2, 8), (3, 9), (7, 7)])
def test_positions_are_padded_to_a_multiple_of_the_devices_that_divide_them(
    devices: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, shapes = problem(), []

    def flatten(x: jax.Array) -> jax.Array:
        shapes.append(x.shape[:2])
        return x.reshape(-1, *x.shape[2:])

    monkeypatch.setattr(cross_entropy, "context_size", lambda: devices)
    monkeypatch.setattr(cross_entropy, "flatten_rows", flatten)
    got, expected = fused(arrays), reference(*arrays)
    assert shapes == [(B, length)] * 3  # states, targets and weights
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("rows", "platform", "shape"),
    [
        (5, "cpu", (1, 5)),
        (21, "cpu", (5, 5)),
        (22, "cpu", (6, 4)),
        (63, "tpu", (2, 32)),
        (21, "gpu", (1, 21)),
        (0, "cpu", (1, 0)),
    ],
)
def test_slices_have_about_the_number_of_rows_that_a_device_computes(
    rows: int, platform: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 on a CPU, 32 on accelerators: 21 / 4 = 5.25 and 22 / 4 = 5.5 slices, to the nearest even number; zeros fill the last."""
    monkeypatch.setattr(cross_entropy, "SLICE_ROWS", 4)
    monkeypatch.setattr(cross_entropy, "platform", lambda: platform)
    table, weights = cross_entropy._slices(jnp.ones((rows, 3, 2)), jnp.ones(rows))
    assert (table.shape, weights.shape) == ((*shape, 3, 2), shape)
    assert weights.reshape(-1).tolist() == [1] * rows + [0] * (weights.size - rows) and table.sum() == 6 * rows
    axes = ("data", "fsdp", "context", "tensor")
    types = (jax.sharding.AxisType.Auto,) * 4
    for devices, expected in ((1, shape), (2, (1, rows))):
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((devices, 1, 1, 1), axes, axis_types=types)):
            assert jax.eval_shape(lambda x: cross_entropy._slices(x), jnp.ones(rows))[0].shape == expected


@pytest.mark.parametrize(
    ("platform", "vocab", "rows"),
    [("gpu", 11, 128), ("gpu", 128, 128), ("gpu", 129, 256), ("cpu", 11, 11), ("tpu", 11, 11)],
)
def test_vocabularies_are_padded_to_a_multiple_of_128_on_gpus(
    platform: str, vocab: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(static: tuple, hidden: jax.Array, table: jax.Array, bias: jax.Array, *_: jax.Array) -> tuple[int, int]:
        assert (static, table.shape, bias.shape) == ((vocab, None), (rows, 3), (rows,))
        return 1, 2

    monkeypatch.setattr(cross_entropy, "platform", lambda: platform)
    monkeypatch.setattr(cross_entropy, "_token_loss", loss)
    projection = Projection(jnp.zeros((1, 2, 3)), jnp.zeros((vocab, 3)), jnp.zeros(vocab))
    assert token_loss(projection, jnp.zeros((1, 2), int), jnp.zeros((1, 2))) == (1, 2)


def test_value_and_gradient_equal_optax(sliced: None) -> None:
    hidden, table, _, targets, weights = problem(1)

    def of(loss: Callable) -> tuple:
        inputs = jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32)
        return tiny.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)

    def theirs(hidden: jax.Array, table: jax.Array) -> jax.Array:
        return (weights * optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, targets)).sum()

    ours = of(lambda hidden, table: token_loss(Projection(hidden, table, None), targets, jnp.asarray(weights)).loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, of(theirs))


def test_value_without_gradient_is_the_same(sliced: None, place: None) -> None:
    hidden, table, bias, targets, weights = arrays = problem(2)
    single = (jnp.asarray(x, jnp.float32) for x in (hidden, table, bias))
    run = tiny.jit(lambda *given: token_loss(*given))  # of its own: JAX would reuse what it compiled for other slices
    loss, correct = run(Projection(*single), jnp.asarray(targets), jnp.asarray(weights, jnp.float32))
    expected = reference(*arrays)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    assert float(correct) == expected["correct"]


@pytest.mark.parametrize("cap", [None, 2.0], ids=["", "capped"])
def test_smoothing_gives_the_loss_of_smoothed_labels(cap: float | None) -> None:
    """Cross-entropy with 0.9 of the probability on the target and 0.1 spread evenly, in value and gradient, by optax."""
    arrays = [jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in problem()]
    targets, weights = arrays[3:]
    labels = 0.9 * jax.nn.one_hot(targets, V) + 0.1 / V

    def ours(*given: jax.Array) -> jax.Array:
        projection = Projection(*given, cap)
        return token_loss(projection, targets, weights).loss + 0.1 * smoothing(projection, targets, weights)

    def theirs(*given: jax.Array) -> jax.Array:
        return (weights * optax.softmax_cross_entropy(Projection(*given, cap).logits(), labels)).sum()

    found, wanted = (tiny.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays[:3]) for loss in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_an_objectives_smoothing_is_a_term_of_its_loss() -> None:
    """The mean over weights of optax's cross-entropy with smoothed labels; the plain one is reported too."""
    given = [jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in problem()]
    projection, (targets, weights) = Projection(*given[:3]), given[3:]

    class Objective(NextTokenOfDecoder):
        def projection(self, model: None, batch: dict, key: None) -> Projection:
            return projection

    objective, batch = Objective(0.2), {"targets_BL": targets, "weights_BL": weights}
    totals = {"tokens": weights.sum(), "real": jnp.float32(99)}
    one_hot = jax.nn.one_hot(targets, V)
    for rate, found in (
        (0.2, objective.loss(objective.metric_sums(None, batch, None), totals)),
        (0.0, Objective().loss(Objective().metric_sums(None, batch, None), totals)),
        (0.0, objective.metric_sums(None, batch, None)["lm_loss_nats"] / totals["tokens"]),
    ):
        labels = (1 - rate) * one_hot + rate / V
        expected = (weights * optax.softmax_cross_entropy(projection.logits(), labels)).sum() / weights.sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_positions_of_weight_zero_have_no_influence(place: None) -> None:
    hidden, table, bias, targets, weights = problem()
    before = fused((hidden, table, bias, targets, weights))
    hidden, targets = hidden.copy(), targets.copy()
    hidden[weights == 0], targets[weights == 0] = 50.0, 0
    after = fused((hidden, table, bias, targets, weights))
    for name in ("loss", "correct", "table", "bias"):
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6, atol=1e-6)
    assert (after["hidden"][weights == 0] == 0).all()


def test_correct_counts_positions_whose_target_is_the_argmax() -> None:
    hidden, table, bias, _, weights = problem(3, m=200)
    second, best = np.moveaxis((hidden @ table.T + bias).argsort(-1)[..., -2:], -1, 0)
    right = np.arange(best.size).reshape(best.shape) % 3 == 0
    found = fused((hidden, table, bias, np.where(right, best, second), weights))["correct"]
    assert float(found) == pytest.approx((weights * right).sum())


def test_large_logits_stay_finite() -> None:
    hidden, table, bias, targets, weights = problem()
    arrays = (1e3 * hidden, table, bias, targets, weights)
    got, expected = fused(arrays), reference(*arrays)
    assert float(got["loss"]) == pytest.approx(expected["loss"], rel=1e-4)
    np.testing.assert_allclose(got["hidden"], expected["hidden"], atol=1e-3)


@pytest.mark.parametrize("gap", [0.0, 71.0, 73.0, 150.0, 216.5, 300.0, 450.0, -300.0])
def test_tpus_sum_exponentials_far_from_the_target(monkeypatch: pytest.MonkeyPatch, gap: float) -> None:
    """One other logit lies `gap` above the target's; softmax cross-entropy in float64."""
    monkeypatch.setattr(cross_entropy, "platform", lambda: "tpu")
    hidden, table, bias, targets, weights = problem()
    table, bias = 0.1 * table, np.zeros(V)
    targets[:] = 3
    bias[5] = gap
    got, expected = fused((hidden, table, bias, targets, weights)), reference(hidden, table, bias, targets, weights)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


def test_a_loss_beyond_all_windows_is_infinite_on_tpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 windows of 144 nats, the first of which has the target in its center, end at 504; float32 overflows 88 nats above the last center."""
    monkeypatch.setattr(cross_entropy, "platform", lambda: "tpu")
    hidden, table, bias, targets, weights = problem()
    targets[:], bias[:] = 3, 0.0
    bias[5] = 3 * 144 + 100
    assert np.isinf(float(fused((0 * hidden, table, bias, targets, weights))["loss"]))


def test_gradient_scales_with_the_loss() -> None:
    arrays = problem()
    once, scaled = fused(arrays), fused(arrays, scale=0.37)
    for name in ("loss", "hidden", "table", "bias"):
        np.testing.assert_allclose(scaled[name], 0.37 * once[name], rtol=1e-5, atol=1e-7)


def test_bfloat16_gradients_of_confident_predictions_are_not_lost_in_rounding(sliced: None, place: None) -> None:
    """Logits of 5 for the targets and 0 for others: gradients are a hundredth of the table's rows, whose difference they are."""
    rng = np.random.default_rng(4)
    table, targets = rng.normal(size=(V, 12)), rng.integers(0, V, (B, M))
    hidden = 5 * np.linalg.pinv(table)[:, targets].transpose(1, 2, 0)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (hidden, table)]
    arrays = (*rounded, np.zeros(V), targets, np.ones((B, M)))
    got, expected = fused(arrays, jnp.bfloat16), reference(*arrays)
    for name, size in (("hidden", 0.02), ("table", 0.02), ("bias", 0.02)):
        error = np.abs(np.asarray(got[name], np.float64) - expected[name]).max()
        assert error < 2**-6 * np.abs(expected[name]).max() < size, name
    low = [jnp.zeros(shape, jnp.bfloat16) for shape in ((4, 12), (V, 12), (V,))]
    static, rest = (V, None), (jnp.zeros(4, int), jnp.ones(4))
    residuals = jax.eval_shape(lambda *rows: cross_entropy._forward(static, *rows)[1], *low, *rest)
    assert residuals[1].dtype == jnp.float32  # the table's gradient, to which slices add


def test_the_first_token_counts_once_where_bfloat16_pads_with_it(sliced: None) -> None:
    """Its exponential is 1, and the other ten add 4e-5: each copy that stayed in the sum would add log 2 and more."""
    hidden, weights = np.zeros((B, M, D)), np.ones((B, M))
    hidden[..., 0] = 12.5
    table = np.eye(V, D)
    for targets in (np.zeros((B, M), int), np.full((B, M), V - 1)):
        arrays = (hidden, table, np.zeros(V), targets, weights)
        got, expected = fused(arrays, jnp.bfloat16), reference(*arrays)
        assert float(got["loss"]) == pytest.approx(expected["loss"], rel=1e-5, abs=B * M * 1e-5)


def test_bfloat16_states_have_rounded_but_unbiased_gradients(sliced: None, place: None) -> None:
    hidden, table, *rest = problem(m=200)
    arrays = (*(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (hidden, table)), *rest)
    got, expected = fused(arrays, jnp.bfloat16, scale=0.37), reference(*arrays)
    assert got["hidden"].dtype == jnp.bfloat16 and got["table"].dtype == got["bias"].dtype == jnp.float32
    assert float(got["loss"]) == pytest.approx(0.37 * expected["loss"], rel=1e-5)
    for name in ("hidden", "table", "bias"):
        right, found = 0.37 * expected[name], np.asarray(got[name], np.float64)
        assert np.abs(found - right).max() < 2**-7 * np.abs(right).max(), name
        # Rounding errors of single elements cancel in a projection on the right answer; a wrong factor would not.
        assert (found * right).sum() / (right * right).sum() == pytest.approx(1, abs=2**-10), name
