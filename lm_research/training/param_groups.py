"""Which parameters learn, and how fast.

There are frozen ones (train.freeze), adapters (lora), and rates that fall layer by layer (optimizer.layer_decay) or with the width
(model.mup_base_width).

With adapters (models/adapters.py) all else is frozen but for what lora.modules_to_save names; train.freeze may freeze more. A frozen parameter
has no gradient, no optimizer state and no decay. The layers of a stack are one array with a leading axis: if only some of them are
frozen, the array keeps its optimizer state, and their gradient, moments and update are zero.

Rates fall from the top (Howard & Ruder 2018, section 3.2; Clark et al. 2020, appendix B; Bao et al. 2021): with decay d and N layers
the head, the pooler and a final norm have the full rate, layer i of 0 .. N - 1 has d^(N - i) of it, embeddings d^(N + 1). Of
an encoder-decoder each stack counts by itself.

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

# Path of a parameter -> the layers in its rows; None of one that is not stacked.
Layers = dict[str, tuple[int, ...] | None]
LayersOf = Callable[[str], tuple[int, ...] | None]
_BELOW = ("embeddings", "relative_bias")  # what lies below the layers of a stack


@dataclasses.dataclass(frozen=True)
class ParamGroups:
    """What is special in how parameters learn, all by path ("encoder/layers/attention/query/kernel").

    Attributes:
      frozen: parameters that do not learn at all.
      masks: of those that learn in part, 1 for each layer that learns, else 0; to be multiplied with the array.
      rates: fractions of the learning rate, numbers or one a layer; none where there is no decay.
      dropout: of the adapters' inputs.
    """

    frozen: frozenset[str]
    masks: dict[str, np.ndarray]
    rates: dict[str, np.ndarray]
    dropout: float = 0.0

    def count(self, shapes: Params) -> int:
        """How many parameters learn."""

        def share(path: str) -> Any:
            return self.masks[path].mean() if path in self.masks else 1.0

        leaves = flatten(self.learning(shapes))
        return round(sum(math.prod(leaf.shape) * share(path) for path, leaf in leaves.items()))

    def describe(self, shapes: Params) -> str:
        """How many parameters learn, where not all do."""
        if not (self.frozen or self.masks):
            return ""
        count, whole = self.count(shapes), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        return f"trains {count:,} of {whole:,} parameters ({count / whole:.2%})"

    def learning(self, tree: Params) -> Params:
        """The parameters, or anything of their structure, without those that are frozen."""
        return self._kept(tree, "") if self.frozen else tree

    def _kept(self, tree: Params, prefix: str) -> Params:
        inner = {
            key: self._kept(value, f"{prefix}{key}/") if isinstance(value, dict) else value
            for key, value in tree.items()
            if f"{prefix}{key}" not in self.frozen
        }
        return {key: value for key, value in inner.items() if not isinstance(value, dict) or value}

    def used(self, params: Params, learning: Params, key: jax.Array | None) -> Params:
        """All parameters with the given ones for those that learn, as a training step computes with them."""
        whole = unflatten(flatten(params) | flatten(learning)) if self.frozen else learning
        return adapters.dropped(whole, self.dropout, key)

    def gradient(self, gradient: Params) -> Params:
        """A gradient without what is frozen, whole or in part."""
        return _change(self.learning(gradient), self.masks)

    def moved(self, params: Params, direction: Params, rate: jax.Array) -> Params:
        """`params - rate * direction`, each by its share of the rate; `direction` is of those that learn."""
        moves = flatten(_change(_change(direction, self.rates), self.masks))

        def move(path: tuple[Any, ...], param: jax.Array) -> jax.Array:
            name = _name(path)
            return param - rate * moves[name] if name in moves else param

        return jax.tree_util.tree_map_with_path(move, params)


ALL_LEARN = ParamGroups(frozenset(), {}, {})


def make_groups(config: Config, shapes: Params, layers_of: LayersOf | None = None) -> ParamGroups:
    """The groups of a model.

    Args:
      config: optimizer.layer_decay, train.freeze, lora and, for widths, the model section are used.
      shapes: the parameters, or their shapes.
      layers_of: of which layers the rows of a stacked parameter are (ModelDefinition.layers_of); None: all, in their order.

    Raises:
      ConfigError: a pattern of train.freeze or lora.modules_to_save is no regular expression, or fits no parameter; nothing is left to learn.
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
        full = list(_fitting("lora.modules_to_save", config.lora.modules_to_save, learns, layers))
        for path, mask in learns.items():
            if not adapters.is_adapter(path):
                learns[path] = np.any([fits[path] for fits in full], axis=0) * mask if full else np.zeros_like(mask)
    for fits in _fitting("train.freeze", config.train.freeze, learns, layers):
        learns = {path: np.where(fits[path], 0.0, mask).astype(np.float32) for path, mask in learns.items()}
    if not any(mask.any() for mask in learns.values()):
        raise ConfigError(
            f"config.train.freeze={','.join(config.train.freeze)!r} leaves no parameter to learn. Freeze fewer."
        )
    partly = {path: mask for path, mask in learns.items() if mask.any() and not mask.all()}
    masks = {path: _along_layers(mask, leaves[path]) for path, mask in partly.items()}
    return frozenset(path for path, mask in learns.items() if not mask.any()), masks


def _fitting(
    key: str, patterns: Sequence[str], learns: dict[str, np.ndarray], layers: Layers
) -> Iterator[dict[str, np.ndarray]]:
    """For each pattern of a key: whether it fits each parameter, of those of a stack each layer's."""
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f'config.{key}: {pattern!r} is not a regular expression ({error}). Several are divided by commas; those with commas of their own are a list, ["a{{1,2}}", ...].'
            ) from error
        fits = {
            path: np.array([bool(expression.search(name)) for name in _names(path, layers[path])]) for path in learns
        }
        if not any(found.any() for found in fits.values()):
            groups = sorted({"/".join(path.split("/")[:2]) for path in learns})
            raise ConfigError(
                f"config.{key}: {pattern!r} fits no parameter. Parameters lie below {', '.join(groups)}; those of a stack's layer "
                "3 below encoder/layers/3 or decoder/layers/3."
            )
        yield fits


def _names(path: str, layers: tuple[int, ...] | None) -> Sequence[str]:
    """The name of each layer's part: "encoder/layers/3/attention/..."."""
    if layers is None:
        return [path]
    stack = _stack(path)
    rest = path.removeprefix(stack)
    return [f"{stack}{layer}/{rest}" for layer in layers]


def _stack(path: str) -> str:
    """The part `encoder/layers/` of a path below it."""
    before, layers, _ = path.partition("layers/")
    return before + layers


def _rate(path: str, leaves: dict[str, tuple[int, ...]], layers: Layers, decay: float) -> np.ndarray:
    def depth(stack: str) -> int:
        return max((1 + max(layers[other] or (-1,)) for other in leaves if other.startswith(stack)), default=0)

    own = layers[path]
    if own is not None:
        below = depth(_stack(path)) - np.array(own)
        return _along_layers((decay**below).astype(np.float32), leaves[path])
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part in _BELOW:
            stack = "/".join([*parts[:place], "layers", ""])
            return np.asarray(decay ** (depth(stack) + 1), np.float32)
    return np.ones((), np.float32)


def _along_layers(values_N: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return values_N.reshape(-1, *(1,) * (len(shape) - 1))


def _change(tree: Params, factors: dict[str, np.ndarray]) -> Params:
    """Each array times its factor; those without one as they are."""
    if not factors:
        return tree

    def times(path: Any, x: Any) -> Any:
        return x * jnp.asarray(factors[name]) if (name := _name(path)) in factors else x

    return jax.tree_util.tree_map_with_path(times, tree)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(key.key) for key in path)
