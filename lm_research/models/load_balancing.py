"""Balance of a mixture's experts: the loads of routers, collected over all stacks of a call, and the loss that keeps them even."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


def router_load(routing_BLE: jax.Array, experts_per_token: int, weights_BL: jax.Array | None = None) -> jax.Array:
    """Sums over positions of whether each expert is used, and of its probability, [2, E], for `load_balancing`.

    Args:
      routing_BLE: the router's probabilities.
      experts_per_token: number of experts that each position uses.
      weights_BL: weights of positions, 0 to exclude one; None is 1 for all.
    """
    used_BLE = jax.nn.one_hot(jax.lax.top_k(routing_BLE, experts_per_token)[1], routing_BLE.shape[-1]).sum(-2)
    weights_BL = jnp.ones(routing_BLE.shape[:2]) if weights_BL is None else weights_BL
    return jnp.einsum("XBLE,BL->XE", jnp.stack([used_BLE, routing_BLE]), weights_BL.astype(jnp.float32))


def load_balancing(load_2E: jax.Array, positions: jax.Array | float) -> jax.Array:
    """Load-balancing loss: num_experts x sum over experts of (fraction of positions that use it) x (its mean probability).

    It is the number of experts per token if all experts are used equally often, and larger otherwise (Fedus et al. 2022, equations 4 to
    6, with several experts per position).

    Args:
      load_2E: the sum of `router_load` over layers.
      positions: the sum of the weights over layers.
    """
    used_E, probs_E = load_2E / positions
    return load_2E.shape[-1] * (used_E * probs_E).sum()


class RouterLoads(NamedTuple):
    """How the layers of a stack use their experts: the sum of `router_load` over layers [2, E], and that of the weights."""

    load_2E: jax.Array
    positions: jax.Array


_LOADS: list[list[RouterLoads]] = []


@contextlib.contextmanager
def router_loads() -> Iterator[list[RouterLoads]]:
    """Collect the router loads of all stacks with experts that are traced inside."""
    _LOADS.append([])
    try:
        yield _LOADS[-1]
    finally:
        _LOADS.pop()


def collects_loads() -> bool:
    """Whether `router_loads` collects."""
    return bool(_LOADS)


def add_loads(loads: Sequence[jax.Array], weights_BL: jax.Array) -> None:
    """Add the router loads of a stack's layers, of positions with these weights."""
    _LOADS[-1].append(RouterLoads(functools.reduce(jnp.add, loads), weights_BL.sum() * len(loads)))


def balance_loss(loads: Iterable[RouterLoads]) -> jax.Array:
    """Sum of the load-balancing losses of stacks; 0 without any."""
    return sum((load_balancing(*load) for load in loads), jnp.zeros(()))
