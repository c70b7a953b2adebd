"""A 64-bit digest of an array's bits, computed on the array's devices.

Each element's bits are hashed with its index, and the hashes are added modulo 2**32, twice with different constants. Integer addition
commutes, so the digest does not depend on how the array is divided over devices. The digest shows whether two runs ended with the same
parameters, and whether a file was restored completely; it does not protect against deliberate collisions.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm_research.models.layers import random_bits
from lm_research.trees import flatten

_KEYS = ((0x9E3779B9, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32; JAX runs in 32-bit mode, so there are no 64-bit types."""
    width = x.dtype.itemsize
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


# One small program per shape, which parameters, moments and averages share; a program for a whole tree compiles far more slowly.
@jax.jit
def digest_words(x: jax.Array) -> jax.Array:
    """The digest of an array, [2] uint32."""
    return _digest_part(x, x.shape, ())


def _digest_part(x: jax.Array, whole: tuple[int, ...], start: tuple[jax.Array, ...]) -> jax.Array:
    """What a part contributes to the digest of an array of shape `whole`; `start` is the place of its first element."""
    words = _words(x)
    sums = []
    for pair in _KEYS:
        position = random_bits(jax.random.wrap_key_data(jnp.asarray(pair, jnp.uint32)), x.shape, whole, start)
        mixed = (words ^ position) * jnp.uint32(pair[0] | 1)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(pair[1] | 1)
        sums.append((mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32))
    return jnp.stack(sums)


_digest_shard = jax.jit(_digest_part, static_argnums=1)
# Path of an array -> place of a shard's first element, "0,16" -> both words of what the shard contributes to the array's digest.
ShardDigests = dict[str, dict[str, list[int]]]


def start_digests(tree: Any) -> dict[str, dict[str, jax.Array]]:
    """Start to compute what this process's shards contribute to the digests of a nested dict's arrays: `ShardDigests`, on devices.

    No device waits for another one, so that any thread may call this, at any time.
    """

    def start(whole: jax.Array, shard: Any) -> tuple[str, jax.Array]:
        place = tuple(np.uint32(part.start or 0) for part in shard.index)
        return ",".join(map(str, place)), _digest_shard(shard.data, whole.shape, place)

    with jax.set_mesh(Mesh(np.empty((), object), ())):  # these programs are of one device each
        return {
            path: dict(start(whole, shard) for shard in whole.addressable_shards if not shard.replica_id)
            for path, whole in flatten(tree).items()
        }


def finish_digests(words: Mapping[str, Mapping[str, jax.Array]]) -> ShardDigests:
    """Wait for `start_digests`."""
    return {
        path: {place: np.asarray(pair).tolist() for place, pair in shards.items()} for path, shards in words.items()
    }


def join_digests(processes: Iterable[ShardDigests]) -> dict[str, str]:
    """Add up what processes contribute: path -> digest, as of `digest_arrays`. A shard that several processes have counts once."""
    joined = collections.defaultdict[str, dict[str, list[int]]](dict)
    for digests in processes:
        for path, shards in digests.items():
            joined[path].update(shards)
    sums = {
        path: [sum(words) % 2**32 for words in zip(*shards.values(), strict=True)] for path, shards in joined.items()
    }
    return {path: f"{a:08x}{b:08x}" for path, (a, b) in sums.items()}


def digest_arrays(tree: Any) -> dict[str, str]:
    """Digests of a nested dict's arrays: path "a/b/c" -> 16 hexadecimal digits."""
    if jax.process_count() == 1:  # by the programs that saving compiles anyway
        return join_digests([finish_digests(start_digests(jax.tree.map(jnp.asarray, tree)))])
    words = flatten(jax.device_get(jax.tree.map(digest_words, tree)))
    return {path: f"{int(a):08x}{int(b):08x}" for path, (a, b) in words.items()}


def digest_of(tree: Any) -> str:
    """A digest of a nested dict from its arrays' paths and digests (16 hexadecimal digits)."""
    lines = "".join(f"{path} {digest}\n" for path, digest in sorted(digest_arrays(tree).items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
