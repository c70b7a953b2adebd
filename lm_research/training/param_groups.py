"""Parameter groups: which parameters are trainable, and at which fraction of the learning rate.

Parameters can be frozen (train.freeze), adapters can be trained instead (lora), and rates can fall layer by layer
(optimizer.layer_decay) or with the width (model.mup_base_width).

With adapters (models/adapters.py) all other parameters are frozen, except those that lora.modules_to_save names; train.freeze may freeze
more. A frozen parameter has no gradient, no optimizer state and no decay. The layers of a stack are one array with a leading axis: if
only some of them are frozen, the array keeps its optimizer state, and their gradient, moments and update are zero.

Rates fall from the top (Howard & Ruder 2018, section 3.2; Clark et al. 2020, appendix B; Bao et al. 2021): with decay d and N layers
the head, the pooler and a final norm have the full rate, layer i of 0 .. N - 1 has d^(N - i) of it, embeddings d^(N + 1). In an
encoder-decoder each stack is counted separately.

Legend: N layers of a stack.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.config import Config
from lm_research.errors import ConfigError
from lm_research.models import adapters
from lm_research.models.definition import Params
from lm_research.models.mup import learning_rate_scale, width_ratio
from lm_research.trees import flatten, unflatten

# Path of a parameter -> the layers in its rows; None if it is not stacked.
Layers = dict[str, tuple[int, ...] | None]
LayersOf = Callable[[str], tuple[int, ...] | None]
_BELOW = (
    "embeddings",
    "relative_bias",
    "block_relative_bias",
    "relative_embeddings",
    "relative_norm",
)  # parts below the layers of a stack


@dataclasses.dataclass(frozen=True)
class ParamGroups:
    """The exceptions to training all parameters alike, by path ("encoder/layers/attention/query/kernel").

    Attributes:
      frozen: parameters that are not trainable.
      masks: for partly frozen parameters, 1 for each trainable layer, otherwise 0; broadcastable to the array.
      rates: fractions of the learning rate, a number or one per layer; empty if all are 1.
      dropout: of the adapters' inputs.
    """

    frozen: frozenset[str]
    masks: dict[str, np.ndarray]
    rates: dict[str, np.ndarray]
    dropout: float = 0.0

    def count(self, shapes: Params) -> int:
        """Count the trainable parameters."""

        def fraction(path: str) -> Any:
            return self.masks[path].mean() if path in self.masks else 1.0

        leaves = flatten(self.trainable(shapes))
        return round(sum(math.prod(leaf.shape) * fraction(path) for path, leaf in leaves.items()))

    def describe(self, shapes: Params) -> str:
        """Describe how many parameters are trainable; "" if all are."""
        if not (self.frozen or self.masks):
            return ""
        count, whole = self.count(shapes), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        return f"trains {count:,} of {whole:,} parameters ({count / whole:.2%})"

    def trainable(self, tree: Params) -> Params:
        """Remove frozen parameters from the parameters, or from any tree of their structure."""
        return self._without_frozen(tree, "") if self.frozen else tree

    def _without_frozen(self, tree: Params, prefix: str) -> Params:
        inner = {
            key: self._without_frozen(value, f"{prefix}{key}/") if isinstance(value, dict) else value
            for key, value in tree.items()
            if f"{prefix}{key}" not in self.frozen
        }
        return {key: value for key, value in inner.items() if not isinstance(value, dict) or value}

    def combine(self, params: Params, trainable: Params, key: jax.Array | None) -> Params:
        """Combine frozen and trainable parameters for a training step, with dropout of the adapters' inputs."""
        whole = unflatten(flatten(params) | flatten(trainable)) if self.frozen else trainable
        return adapters.dropped(whole, self.dropout, key)

    def mask_gradient(self, gradient: Params) -> Params:
        """Remove frozen parameters from a gradient, and zero that of frozen layers."""
        return _change(self.trainable(gradient), self.masks)

    def apply_updates(self, params: Params, direction: Params, rate: jax.Array) -> Params:
        """Compute `params - rate * direction` with each parameter's fraction of the rate; `direction` is of the trainable ones."""
        moves = flatten(_change(_change(direction, self.rates), self.masks))

        def move(path: tuple[Any, ...], param: jax.Array) -> jax.Array:
            name = _name(path)
            return param - rate * moves[name] if name in moves else param

        return jax.tree_util.tree_map_with_path(move, params)


ALL_TRAINABLE = ParamGroups(frozenset(), {}, {})


def make_groups(config: Config, shapes: Params, layers_of: LayersOf | None = None) -> ParamGroups:
    """Make the groups of a model.

    Args:
      config: optimizer.layer_decay, train.freeze, lora and, for widths, the model section are used.
      shapes: the parameters, or their shapes.
      layers_of: the layers in the rows of a stacked parameter (ModelDefinition.layers_of); None: all, in order.

    Raises:
      ConfigError: a pattern of train.freeze or lora.modules_to_save is not a regular expression or matches no parameter, or no parameter
        is trainable.
    """
    leaves = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    layers = {
        path: layers_of(path) if layers_of is not None else tuple(range(shape[0])) if "layers/" in path else None
        for path, shape in leaves.items()
    }
    frozen, masks = _freeze(config, leaves, layers)
    decay = config.optimizer.layer_decay
    ratio, rates = width_ratio(config.model), {}
    if decay != 1.0 or ratio != 1.0:
        rates = {path: _rate(path, leaves, layers, decay) * learning_rate_scale(path, ratio) for path in leaves}
    return ParamGroups(frozen, masks, rates, config.lora.dropout if config.lora.rank else 0.0)


def _freeze(
    config: Config, leaves: dict[str, tuple[int, ...]], layers: Layers
) -> tuple[frozenset[str], dict[str, np.ndarray]]:
    learns = {path: np.ones(len(layers[path] or (0,)), np.float32) for path in leaves}
    if config.lora.rank:
        full = list(_matches("lora.modules_to_save", config.lora.modules_to_save, learns, layers))
        for path, mask in learns.items():
            if not adapters.is_adapter(path):
                learns[path] = np.any([fits[path] for fits in full], axis=0) * mask if full else np.zeros_like(mask)
    for fits in _matches("train.freeze", config.train.freeze, learns, layers):
        learns = {path: np.where(fits[path], 0.0, mask).astype(np.float32) for path, mask in learns.items()}
    if not any(mask.any() for mask in learns.values()):
        raise ConfigError(
            f"config.train.freeze={','.join(config.train.freeze)!r} leaves no trainable parameter. Freeze fewer."
        )
    partly = {path: mask for path, mask in learns.items() if mask.any() and not mask.all()}
    masks = {path: _along_layers(mask, leaves[path]) for path, mask in partly.items()}
    return frozenset(path for path, mask in learns.items() if not mask.any()), masks


def _matches(
    key: str, patterns: Sequence[str], learns: dict[str, np.ndarray], layers: Layers
) -> Iterator[dict[str, np.ndarray]]:
    """Yield, for each pattern of a key, whether it matches each parameter, or each layer of a stacked one."""
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"config.{key}: {pattern!r} is not a regular expression ({error}). Separate several by commas, or write a list if one "
                'contains commas, ["a{1,2}", ...].'
            ) from error
        fits = {
            path: np.array([bool(expression.search(name)) for name in _names(path, layers[path])]) for path in learns
        }
        if not any(found.any() for found in fits.values()):
            groups = sorted({"/".join(path.split("/")[:2]) for path in learns})
            raise ConfigError(
                f"config.{key}: {pattern!r} matches no parameter. The paths of parameters begin with {', '.join(groups)}; those of a stack's "
                "layer 3 with encoder/layers/3 or decoder/layers/3."
            )
        yield fits


def _names(path: str, layers: tuple[int, ...] | None) -> Sequence[str]:
    """Name each layer's part of a parameter: "encoder/layers/3/attention/..."."""
    if layers is None:
        return [path]
    stack = _stack(path)
    rest = path.removeprefix(stack)
    return [f"{stack}{layer}/{rest}" for layer in layers]


def _stack(path: str) -> str:
    """Return the part `encoder/layers/` of a path."""
    before, layers, _ = path.partition("layers/")
    return before + layers


def _rate(path: str, leaves: dict[str, tuple[int, ...]], layers: Layers, decay: float) -> np.ndarray:
    def depth(stack: str) -> int:
        return max((1 + max(layers[other] or (-1,)) for other in leaves if other.startswith(stack)), default=0)

    rows = layers[path]
    if rows is not None:
        below_top = depth(_stack(path)) - np.array(rows)
        return _along_layers((decay**below_top).astype(np.float32), leaves[path])
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part in _BELOW:
            stack = "/".join([*parts[:place], "layers", ""])
            return np.asarray(decay ** (depth(stack) + 1), np.float32)
    return np.ones((), np.float32)


def _along_layers(values_N: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values_N.reshape(-1, *(1,) * (len(shape) - 1))


def _change(tree: Params, factors: dict[str, np.ndarray]) -> Params:
    """Multiply each array by its factor, if it has one."""
    if not factors:
        return tree

    def times(path: Any, x: Any) -> Any:
        return x * jnp.asarray(factors[name]) if (name := _name(path)) in factors else x

    return jax.tree_util.tree_map_with_path(times, tree)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(key.key) for key in path)
