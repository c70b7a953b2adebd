"""Nested dicts of arrays, and the same as one flat dict by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dicts as one: "a/b/c" -> leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(key.key if isinstance(key, DictKey | FlattenedIndexKey) else key) for key in path): leaf
        for path, leaf in pairs
    }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
