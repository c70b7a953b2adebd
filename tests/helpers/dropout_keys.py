"""The keys that a model's dropout draws from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.models import layers


def drawn_from(monkeypatch: pytest.MonkeyPatch, function: Callable, shapes: Any) -> np.ndarray:
    """The key of each place of `function(params, key)` that drops [places, 2].

    As nothing else is returned, only the keys are compiled.
    """
    bits = layers.random_bits

    def run(params: Any) -> list[jax.Array]:
        keys: list[jax.Array] = []

        def spied(key: jax.Array, *rest: Any) -> jax.Array:
            keys.append(jax.random.key_data(key))
            return bits(key, *rest)

        with monkeypatch.context() as patch, jax.disable_jit():  # so that loops over layers are unrolled
            patch.setattr(layers, "random_bits", spied)
            function(params, jax.random.key(0))
        return keys

    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return np.array(tiny.jit(run)(params))
