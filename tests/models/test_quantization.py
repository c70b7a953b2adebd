"""Quantized products against arithmetic in NumPy, and in the gradient of a model."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helpers import tiny
from lm_research.errors import ConfigError, UserError
from lm_research.models.quantization import check_quantization, quantized_product
from lm_research.objectives import build_objective
from lm_research.parallel.hardware import CHIPS
from lm_research.training.step import loss_and_gradient

with_qwix = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="needs the extra quant")
# Types of inputs and weights, and of gradients, with the number that the largest absolute value becomes; int8 rounds up to 127.5.
TYPES = {
    "int8": ((np.int8, 127.5), (np.int8, 127.5)),
    "fp8": ((ml_dtypes.float8_e4m3fn, 448.0), (ml_dtypes.float8_e5m2, 57344.0)),
}


def draw(seed: int, shape: tuple[int, int], largest: float) -> np.ndarray:
    """Eighths below `largest`, which every row and column has once, times 2^-9: scales are powers of 2, and quotients exact."""
    x = np.random.default_rng(seed).uniform(-0.9, 0.9, shape) * largest
    rows, columns = np.indices(shape)
    return np.where((rows - columns) % min(shape) == 0, largest, np.round(8 * x) / 8).astype(np.float32) / 512


def quantized(x: np.ndarray, dtype: type, largest: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a type, in float32, and their scales along `axis`."""
    scale = np.abs(x).max(axis, keepdims=True) / np.float32(largest)
    scaled = np.round(x / scale).clip(-128, 127) if dtype is np.int8 else x / scale
    return scaled.astype(dtype).astype(np.float32), scale


@with_qwix
@pytest.mark.parametrize("name", TYPES)
def test_values_and_straight_through_gradients(name: str) -> None:
    """With scales: x W = s_x (x_q W_q) s_W; dx = s (g s_W)_q W_q^T; dW = x_q^T (s_x g)_q s."""
    forward, backward = TYPES[name]
    X, W, G = draw(0, (6, 16), forward[1]), draw(1, (16, 10), forward[1]), draw(2, (6, 10), backward[1])
    (x, s_x), (w, s_w) = quantized(X, *forward, 1), quantized(W, *forward, 0)
    (by_row, s_row), (by_column, s_column) = quantized(G * s_w, *backward, 1), quantized(G * s_x, *backward, 0)
    y, pull = jax.vjp(functools.partial(quantized_product, name), jnp.asarray(X), jnp.asarray(W))
    dx, dw = pull(jnp.asarray(G))
    np.testing.assert_allclose(y, (x @ w) * s_x * s_w, rtol=1e-5)
    np.testing.assert_allclose(dx, (by_row @ w.T) * s_row, rtol=1e-4, atol=1e-5 * np.abs(dx).max())
    np.testing.assert_allclose(dw, (x.T @ by_column) * s_column, rtol=1e-4, atol=1e-5 * np.abs(dw).max())
    for actual, exact in ((y, X @ W), (dx, G @ W.T), (dw, X.T @ G)):
        assert 0 < np.linalg.norm(actual - exact) / np.linalg.norm(exact) < {"int8": 0.01, "fp8": 0.06}[name]


@with_qwix
def test_a_product_by_hand() -> None:
    """The row (1, 1/2) has the scale 1 / 127.5 and becomes (127, 64); W = (2, 1) has twice the scale: 20,225 x 2 / 127.5^2."""
    y = quantized_product("int8", jnp.array([[1.0, 0.5]]), jnp.array([[2.0], [1.0]]))
    assert float(y[0, 0]) == pytest.approx((127 * 127 + 64 * 64) * 2 / 127.5**2, rel=1e-6)


def operands(jaxpr: Any) -> list[int]:
    """Bytes per element of the operands of all products in a program, and in the programs in it."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.invars[0].aval.dtype.itemsize)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = value.jaxpr if hasattr(value, "jaxpr") else value
            found += operands(inner) if hasattr(inner, "eqns") else []
    return found


def gradient(family: str, quantization: str, **model: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """The function of a small model's loss and gradient, and its arguments."""
    config = tiny.config(family, model=model)
    definition = tiny.model(family, **model)
    objective = build_objective(config, tiny.WordTokenizer(), definition.arch)
    tokens = np.random.default_rng(1).integers(5, tiny.VOCAB, (1, 4, 16)).astype(np.int32)
    places = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    batch = {
        "tokens_BL": tokens,
        "segments_BL": np.ones_like(tokens),
        "positions_BL": places,
        "targets_BL": tokens,
        "weights_BL": np.ones(tokens.shape, np.float32),
    }
    return functools.partial(loss_and_gradient, objective, definition, quantization=quantization), (
        tiny.random_params(definition),
        batch,
        jax.random.key(0),
    )


@with_qwix
def test_blocks_multiply_8_bit_numbers_and_nothing_else_does() -> None:
    """A block has 6 dense layers, whose products run once forward and twice backward; the loop over blocks has it once."""
    plain, quantized = (
        operands(jax.make_jaxpr(run)(*arguments).jaxpr)
        for run, arguments in (gradient("gpt2", q) for q in ("none", "int8"))
    )
    assert quantized.count(1) == 6 * 3 and plain.count(1) == 0 and len(plain) == len(quantized)


@functools.cache
def computed(**model: Any) -> tuple[float, np.ndarray]:
    """Loss and gradient of a small model, as a vector."""
    run, arguments = gradient("gpt2", "int8", **model)
    loss, _, _, tree = tiny.jit(run)(*arguments)
    return float(loss), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@with_qwix
@pytest.mark.parametrize("change", [{"remat": "dots"}, {"remat": "full", "scan_layers": False}], ids=str)
def test_loops_and_recomputation_change_only_roundings(change: dict) -> None:
    """Programs differ in the last bit of sums, which may round an 8-bit number up instead of down: 1 / 127 of a few elements."""
    (loss, expected), (other, actual) = computed(), computed(**change)
    assert other == pytest.approx(loss, rel=1e-4)
    assert np.linalg.norm(actual - expected) < 0.02 * np.linalg.norm(expected)


MESH = {"data": 1, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("family", "name", "chip", "mesh", "words"),
    [
        ("mixtral", "int8", "v5e", MESH, "model.num_experts"),
        ("gpt2", "int8", "v5e", MESH | {"context": 2}, "mesh.context=2"),
        ("gpt2", "fp8", "v6e", MESH, "TPU v6 lite"),
        ("gpt2", "int8", "tpu7x", MESH, "TPU7x"),
    ],
)
def test_refusals_name_the_key(
    family: str, name: str, chip: str, mesh: dict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    config = tiny.config(family, train={"quantization": name})
    with pytest.raises(UserError, match=f"train.quantization={name}.*{words}"):
        check_quantization(config, tiny.model(family).arch, mesh, CHIPS[chip])
    plain = tiny.config(family)
    check_quantization(plain, tiny.model(family).arch, mesh, CHIPS[chip])


def test_without_qwix_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny.config("gpt2", train={"quantization": "fp8"})
    with pytest.raises(ConfigError, match=r"pip install 'lm_research\[quant\]'"):
        check_quantization(config, tiny.model("gpt2").arch, MESH, None)


def test_chips_and_cpus_that_can_run_it_may() -> None:
    if importlib.util.find_spec("qwix") is None:
        pytest.skip("needs the extra quant")
    arch = tiny.model("gpt2").arch
    for name, chips in {"int8": ("v5e", "v5p", "v6e", "h100"), "fp8": ("tpu7x", "h100", "h200", "b200")}.items():
        for chip in (None, *(CHIPS[one] for one in chips)):
            check_quantization(tiny.config("gpt2", train={"quantization": name}), arch, MESH, chip)
