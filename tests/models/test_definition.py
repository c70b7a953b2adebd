"""Definitions: shapes without memory, round trips of parameters, seeds, logical axes, FLOP counts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import ModelConfig
from lm_research.errors import ConfigError
from lm_research.models.families import define_model
from lm_research.parallel.rules import RULES


def test_describing_a_large_model_takes_no_memory() -> None:
    huge = ModelConfig(family="gpt2", hidden_size=12288, num_layers=96, num_heads=96, intermediate_size=49152)
    definition = define_model(huge, 50257)  # 0.7 TB in float32
    assert definition.num_params > 170e9
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(definition.shapes))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_axes_name_every_dimension(family: str) -> None:
    definition = tiny.model(family)

    def check(path: tuple, leaf: Any, axes: tuple) -> None:
        assert len(axes) == len(leaf.shape)
        stacked = any(getattr(key, "key", "") == "layers" for key in path)
        assert (axes[0] == "layers") == stacked and "layers" not in axes[1:]
        assert {axis for axis in axes if axis} <= {"layers", *RULES}
        if path[-1].key == "kernel":
            assert "embed" in axes  # so that fsdp divides every matrix

    jax.tree_util.tree_map_with_path(check, definition.shapes, definition.axes)


def test_bind_holds_exactly_the_parameters_it_is_given() -> None:
    definition = tiny.model("bert")
    first, second = (tiny.random_params(definition, seed) for seed in (0, 1))
    models = [definition.bind(params) for params in (first, second)]  # the second does not change the first
    for model, params in zip(models, (first, second), strict=True):
        np.testing.assert_array_equal(model.pooler.dense.kernel[...], params["pooler"]["dense"]["kernel"])
        query = model.encoder.layers.attention.query.kernel[...]
        np.testing.assert_array_equal(query, params["encoder"]["layers"]["attention"]["query"]["kernel"])


@pytest.fixture(scope="module")
def initial() -> list[dict[str, np.ndarray]]:
    """Parameters of a wider GPT-2 from seeds 0, 0 and 1, by path."""
    definition = tiny.model("gpt2", hidden_size=64, intermediate_size=256, num_layers=3)
    make = tiny.jit(definition.init)
    trees = [jax.tree_util.tree_leaves_with_path(make(seed)) for seed in (0, 0, 1)]
    return [{"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in tree} for tree in trees]


def test_initial_parameters_depend_only_on_the_seed(initial: list) -> None:
    first, again, other = initial
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        if name.endswith(("bias", "scale")):
            assert (value == (1.0 if name.endswith("scale") else 0.0)).all()
        else:
            assert value.dtype == np.float32
            assert abs(np.corrcoef(value.ravel(), other[name].ravel())[0, 1]) < 5 / value.size**0.5


def test_layers_and_matrices_start_different(initial: list) -> None:
    matrices = [value for name, value in initial[0].items() if name.endswith("kernel")]
    rows = [layer.ravel()[: 64 * 64] for matrix in matrices for layer in matrix]
    correlations = np.abs(np.corrcoef(rows) - np.eye(len(rows)))
    assert len(rows) == 3 * 6 and correlations.max() < 5 / 64


def test_gpt2s_residual_matrices_start_smaller(initial: list) -> None:
    # Radford et al. 2019, section 2.3: 0.02 / sqrt(2 x 3 layers) for the two matrices a block adds to the stream.
    for name, value in initial[0].items():
        if name.endswith(("bias", "scale")):
            continue
        writes = "attention/output" in name or "feed_forward/down" in name
        expected = 0.02 / 6**0.5 if writes else 0.02
        assert value.std() == pytest.approx(expected, rel=5 / (2 * value.size) ** 0.5), name


def test_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"config.model.family is 'brt'. Did you mean 'bert'\?"):
        define_model(ModelConfig(family="brt"), 100)
