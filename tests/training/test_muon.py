"""Muon against the iteration written in NumPy, on matrices as models have them; the rest is AdamW's, at its own rate."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.adapters import matrices_of
from lm_research.training.optimizer import OPTIMIZERS, make_optimizer
from lm_research.training.optimizers.muon import matrix_axes
from lm_research.training.state import optimizer_from_dict, optimizer_to_dict
from lm_research.trees import flatten, unflatten

SHAPES = {
    "encoder/layers/attention/query/kernel": (2, 6, 2, 4),  # [N, D, H, K]: 6 inputs, 8 outputs
    "encoder/layers/attention/output/kernel": (2, 2, 4, 6),  # [N, H, K, D]: 8 inputs, 6 outputs
    "encoder/layers/feed_forward/up/kernel": (2, 6, 10),
    "encoder/layers/feed_forward/up/bias": (2, 10),
    "encoder/embeddings/tokens": (7, 6),
    "classifier/kernel": (6, 2),
}
FLAT = {"query": (6, 8), "output": (8, 6), "up": (6, 10)}
SECTION = OPTIMIZERS.make(
    "muon", learning_rate=0.02, adam_learning_rate=0.001, momentum=0.9, weight_decay=0.1, clip_norm=0.0
)


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def orthogonal(momentum: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024: X / |X|, then five times a X + (b X X^T + c (X X^T)^2) X, on the side with fewer rows."""
    tall = momentum.shape[0] > momentum.shape[1]
    x = (momentum.T if tall else momentum).astype(np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x.T if tall else x


def run(steps: int) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Directions of some steps from the same parameters, through the plain state, and that state."""
    optimizer, params = make_optimizer(SECTION), unflatten(draw(0))
    template, update = jax.eval_shape(optimizer.init, params), tiny.jit(optimizer.update)
    fields, found = optimizer_to_dict(optimizer.init(params)), []
    for number in range(steps):
        direction, state = update(unflatten(draw(1 + number)), optimizer_from_dict(template, fields), params)
        found.append(flatten(jax.device_get(direction)))
        fields = optimizer_to_dict(state)
    return found, fields


def test_hidden_matrices_layer_by_layer() -> None:
    """Nesterov's momentum m <- 0.9 m + 0.1 g, of which 0.9 m + 0.1 g is orthogonalized; each corrected for its start."""
    found, _ = run(2)
    params, momentum = draw(0), dict.fromkeys(SHAPES, 0.0)
    for step, direction in enumerate(found, start=1):
        for path, gradient in draw(step).items():
            momentum[path] = 0.9 * momentum[path] + 0.1 * gradient
            name = path.split("/")[-2]
            if not path.endswith("kernel") or name not in FLAT:
                continue
            ahead = 0.9 * momentum[path] / (1 - 0.9 ** (step + 1)) + 0.1 * gradient / (1 - 0.9**step)
            for layer in range(2):
                inputs, outputs = FLAT[name]
                expected = max(1.0, outputs / inputs) ** 0.5 * orthogonal(ahead[layer].reshape(inputs, outputs))
                expected = expected + 0.1 * params[path][layer].reshape(inputs, outputs)
                np.testing.assert_allclose(
                    direction[path][layer].reshape(inputs, outputs), expected, rtol=2e-3, atol=2e-3
                )


def test_singular_values_are_near_one() -> None:
    """Between 0.6 and 1.3 where the momentum's were 100 apart; the attention's heads are one matrix of a layer."""
    direction = (
        run(1)[0][0]["encoder/layers/attention/query/kernel"] - 0.1 * draw(0)["encoder/layers/attention/query/kernel"]
    )
    values = np.linalg.svd(direction[0].reshape(6, 8) / (8 / 6) ** 0.5, compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_rest_is_adamws_at_its_own_rate() -> None:
    """The first step of Adam is g / (|g| + epsilon) and the step multiplies by 0.02, so 1 / 20 of it is at 0.001."""
    found, fields = run(1)
    for path in ("encoder/layers/feed_forward/up/bias", "encoder/embeddings/tokens", "classifier/kernel"):
        gradient, decay = draw(1)[path], 0.0 if path.endswith("bias") else 0.1
        expected = (gradient / (np.abs(gradient) + 1e-6) + decay * draw(0)[path]) / 20
        np.testing.assert_allclose(found[0][path], expected, rtol=1e-4, atol=1e-6)
    assert set(flatten(fields["mu"])) == set(SHAPES)
    assert set(flatten(fields["nu"])) == {path for path in SHAPES if path.split("/")[-2] not in FLAT or "bias" in path}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_inputs_of_real_models(family: str) -> None:
    """The axes given by a path are those that the layer contracts."""
    definition = tiny.model(family)
    matrices, seen = matrices_of(definition), set()
    for path, leaf in flatten(definition.shapes).items():
        axes = matrix_axes(path, len(leaf.shape))
        if axes is not None:
            seen.add(path.split("/")[-2])
            assert len(axes.reduction_axis) == matrices[path.removesuffix("/kernel")], path
            assert (*axes.reduction_axis, *axes.output_axis) == tuple(range(1, len(leaf.shape)))
    assert seen == {"query", "key", "value", "output", "up", "down"}
