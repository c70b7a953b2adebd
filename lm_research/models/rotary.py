"""Rotary positions: rotations of pairs of elements of queries and keys by angles that grow with the position (Su et al. 2021).

A scaling changes the frequencies so that a model can read longer sequences than it was trained on. It is a mapping with a "type", and
numbers named as in the files of Hugging Face, whose transformers 5.24 is followed:

  linear: positions are divided by `factor` (Chen et al. 2023).
  llama3: long wavelengths are multiplied by `factor`, short ones kept, those between interpolated (Llama 3.1).
  yarn: the same, between pairs that turn `beta_slow` and `beta_fast` times; rotated elements are also scaled (Peng et al. 2023).
  dynamic: the base grows with the number of positions in use beyond those of training (NTK-aware scaling).
  longrope: wavelengths are multiplied by `short_factor`, or by `long_factor` if more positions are in use than in training (Ding et al. 2024).
  proportional: the first pairs, `partial_rotary_factor` of all, have the frequencies of a whole head, and the others turn by 0; then as
    linear (Gemma 4).

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TRAINED, SHARE = "original_max_position_embeddings", "partial_rotary_factor"
# Type of scaling -> the numbers that it needs, and those that it may have.
REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", TRAINED),
    "yarn": ("factor", TRAINED),
    "dynamic": ("factor", TRAINED),
    "longrope": ("factor", TRAINED, "short_factor", "long_factor"),
    "proportional": (),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
    "proportional": ("factor", SHARE),
}
# Types whose frequencies depend on the number of positions in use.
BY_LENGTH = ("dynamic", "longrope")


def rotary_frequencies(
    width: int, theta: float, scaling: Mapping[str, Any], length: jax.Array | int | None = None
) -> np.ndarray | jax.Array:
    """Angles in radians by which a position rotates each of `width` / 2 pairs: theta^(-2 i / width), scaled; float32.

    Args:
      width: number of elements that are rotated, even.
      theta: base of the wavelengths.
      scaling: the scaling; empty for none.
      length: number of positions in use, which the types BY_LENGTH need.
    """
    exponent = np.arange(0, width, 2, dtype=np.float64) / width
    frequency, kind = 1.0 / theta**exponent, scaling.get("type", "none")
    if kind == "linear":
        frequency = frequency / scaling["factor"]
    elif kind == "proportional":
        rotated = np.arange(width // 2) < int(scaling.get(SHARE, 1.0) * width // 2)
        frequency = rotated * frequency / scaling.get("factor", 1.0)
    elif kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling[TRAINED] * frequency / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (blend + (1 - blend) / scaling["factor"])
    elif kind == "yarn":
        blend = _yarn_blend(width, theta, scaling)
        frequency = frequency * (blend + (1 - blend) / scaling["factor"])
    elif kind == "dynamic":
        assert length is not None
        ratio = jnp.maximum(length, scaling[TRAINED]) / scaling[TRAINED]
        base = theta * (scaling["factor"] * ratio - (scaling["factor"] - 1)) ** (width / (width - 2))
        return 1.0 / base ** jnp.asarray(exponent, jnp.float32)
    elif kind == "longrope":
        assert length is not None
        short, long = (frequency / np.asarray(scaling[name]) for name in ("short_factor", "long_factor"))
        return jnp.where(length > scaling[TRAINED], long.astype(np.float32), short.astype(np.float32))
    else:
        assert kind == "none", kind
    return frequency.astype(np.float32)


def _yarn_blend(width: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """1 for pairs that turn more than `beta_fast` times within the positions of training, 0 for less than `beta_slow`, linear between."""

    def pair_of(turns: float) -> float:
        return width * math.log(scaling[TRAINED] / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(scaling.get("beta_fast") or 32.0), pair_of(scaling.get("beta_slow") or 1.0)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return 1 - np.clip((np.arange(width // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)


def rotary_scale(scaling: Mapping[str, Any]) -> float:
    """Factor on rotated elements: 1 but for the types yarn and longrope."""
    kind, factor = scaling.get("type", "none"), scaling.get("factor", 1.0)
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    if kind == "yarn":
        one, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        return _magnitude(factor, one) / _magnitude(factor, all_dim) if one and all_dim else _magnitude(factor, 1.0)
    if kind == "longrope" and factor > 1:
        return math.sqrt(1 + math.log(factor) / math.log(scaling[TRAINED]))
    return 1.0


def _magnitude(factor: float, scale: float) -> float:
    return 1 + 0.1 * scale * math.log(factor) if factor > 1 else 1.0


def rotate(
    x_BLHK: jax.Array,
    positions_BL: jax.Array,
    frequency_K2: np.ndarray | jax.Array,
    interleaved: bool = False,
    scale: float = 1.0,
) -> jax.Array:
    """Rotate pairs of elements of each head by position x frequency i, and multiply them by `scale`, in float32.

    Pair i is the elements i and i + (number of frequencies), or 2 i and 2 i + 1 if `interleaved`. Elements after the last pair are not
    rotated.
    """
    width = 2 * len(frequency_K2)
    angle_BL1K2 = positions_BL[:, :, None, None].astype(jnp.float32) * frequency_K2
    cos, sin = jnp.cos(angle_BL1K2), jnp.sin(angle_BL1K2)
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    x32, rest = x_BLHK[..., :width].astype(jnp.float32), x_BLHK[..., width:]
    first, second = (x32[..., ::2], x32[..., 1::2]) if interleaved else jnp.split(x32, 2, axis=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    rotated = jnp.stack(pair, axis=-1).reshape(x32.shape) if interleaved else jnp.concatenate(pair, axis=-1)
    rotated = rotated.astype(x_BLHK.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


class Rotation(NamedTuple):
    """A rotation as factors of single elements, for kernels: x becomes x cos + (the other element of its pair) sin, in float32.

    Attributes:
      cos_BLT: factors of one or several heads, one after the other; B may be 1.
      sin_BLT: the same of the other elements, with sign; 0 for elements that are not rotated.
      pairs: number of pairs of a head.
      interleaved: as for `rotate`.
    """

    cos_BLT: jax.Array
    sin_BLT: jax.Array
    pairs: int
    interleaved: bool

    def __call__(self, x_BLHK: jax.Array) -> jax.Array:
        """Apply the rotation, as `rotate`."""
        width, count = x_BLHK.shape[-1], 2 * self.pairs
        cos, sin = (table[:, :, None, :width] for table in (self.cos_BLT, self.sin_BLT))
        x32 = x_BLHK.astype(jnp.float32)
        pairs = x32[..., :count].reshape(*x32.shape[:-1], *((-1, 2) if self.interleaved else (2, -1)))
        others = jnp.flip(pairs, -1 if self.interleaved else -2).reshape(*x32.shape[:-1], count)
        others = jnp.concatenate([others, x32[..., count:]], axis=-1)
        return (x32 * cos + others * sin).astype(x_BLHK.dtype)


def make_rotation(
    positions_BL: jax.Array,
    frequency_P: np.ndarray | jax.Array,
    width: int,
    heads: int = 1,
    interleaved: bool = False,
    scale: float = 1.0,
) -> Rotation:
    """Make the factors of `rotate` for `heads` heads of `width` elements."""
    angle_BLP = positions_BL[..., None].astype(jnp.float32) * frequency_P
    cos, sin = jnp.cos(angle_BLP) * scale, jnp.sin(angle_BLP) * scale
    pairs = cos.shape[-1]

    def of_heads(first: jax.Array, second: jax.Array, rest: float) -> jax.Array:
        join = jnp.stack if interleaved else jnp.concatenate
        both = join([first, second], -1).reshape(*cos.shape[:2], -1)
        others = jnp.full((*cos.shape[:2], width - 2 * pairs), rest, jnp.float32)
        return jnp.tile(jnp.concatenate([both, others], -1), heads)

    return Rotation(of_heads(cos, cos, 1.0), of_heads(-sin, sin, 0.0), pairs, interleaved)
