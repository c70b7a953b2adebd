"""Converting nested dicts of arrays to flat dicts by path, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey


def flatten(tree: Any) -> dict[str, Any]:
    """Flatten nested dicts into one dict: "a/b/c" -> leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(key.key if isinstance(key, DictKey | FlattenedIndexKey) else key) for key in path): leaf
        for path, leaf in pairs
    }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the nested dicts that `flatten` flattened."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
