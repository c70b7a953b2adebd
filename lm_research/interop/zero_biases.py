"""Zero biases for formats that always store biases, when the model has none."""

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
    """Find the biases, by path, that a reader of this config.json expects and the model lacks."""
    read, own = define(family.from_hf(written, set()), definition.head), flatten(definition.shapes)
    return {path: leaf for path, leaf in flatten(read.shapes).items() if path not in own and path.endswith("/bias")}


def zeros(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Make zero arrays of these shapes."""
    return {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
