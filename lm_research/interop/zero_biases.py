"""Biases that a stored format always has and a model of ours lacks: zeros say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families.base import Family
from lm_research.trees import flatten


def missing_biases(
    family: Family, definition: ModelDefinition, written: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Biases, by path, that a reader of this config.json will look for and the model does without."""
    read, own = define(family.from_hf(written, set()), definition.head), flatten(definition.shapes)
    return {path: leaf for path, leaf in flatten(read.shapes).items() if path not in own and path.endswith("/bias")}


def zeros(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Arrays of these shapes."""
    return {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
