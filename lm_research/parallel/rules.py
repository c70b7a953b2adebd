"""Sharding rules: the mesh axes that divide each logical axis of an array.

Parameters and activations name their axes ("embed", "heads", "batch", ...). `RULES` maps these names to mesh axes, and `mesh.rules` of a
run changes the mapping of parameter axes. A parameter axis whose size is not a multiple of the devices is refused, because padding it
silently would change memory and speed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lm_research.errors import MeshError, suggest
from lm_research.parallel.mesh import AnyMesh

LogicalAxes = tuple[str | None, ...]

# Logical axis -> mesh axis or axes. Other axes are never divided.
RULES: dict[str, str | tuple[str, ...]] = {
    # parameters
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "expert": "expert",
    # activations
    "batch": ("data", "fsdp", "expert"),
    "length": "context",
    "act_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Return the number of parts into which a mesh with these axis sizes divides a batch."""
    return _axis_size(sizes, RULES["batch"])


# Parameter axes that mesh.rules may assign, and the mesh axes it may assign to them. Rules of activations are fixed.
PARAMETER_AXES, _TARGETS = (
    ("vocab", "heads", "mlp", "embed", "expert", "layers"),
    ("fsdp", "tensor", "expert", "context", "data", "none"),
)


def resolve_rules(given: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """Merge the rules of a run into `RULES`, for example {"vocab": ("fsdp",), "embed": ("none",), "mlp": ("tensor", "fsdp")}.

    Raises:
      MeshError: a name is not an axis of parameters or not an axis of the mesh.
    """
    rules: dict[str, Any] = dict(RULES)
    for name, places in (given or {}).items():
        if name not in PARAMETER_AXES:
            raise MeshError(
                f"config.mesh.rules: {name!r} is not an axis of parameters. {suggest(name, PARAMETER_AXES)}"
            )
        chosen = "+".join(places).split("+")
        for place in chosen:
            if place not in _TARGETS or (place == "none" and len(chosen) > 1):
                raise MeshError(
                    f"config.mesh.rules: {name}={'+'.join(chosen)} is not a mesh axis. {suggest(place, _TARGETS)}"
                )
        rules[name] = None if chosen == ["none"] else tuple(chosen)
    return rules


def partition_spec(axes: Sequence[str | None], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """Return the PartitionSpec of logical axes, such as ("embed", "mlp") -> P("fsdp", "tensor")."""
    return PartitionSpec(*(rules.get(axis) if axis else None for axis in axes))


def _axis_size(sizes: Mapping[str, int], entry: str | tuple[str, ...] | None) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(sizes[name] for name in names)


def param_sharding(
    mesh: AnyMesh, name: str, shape: Sequence[int], axes: LogicalAxes, rules: Mapping[str, Any] = RULES
) -> NamedSharding:
    """Return the sharding of a parameter.

    Raises:
      MeshError: a dimension is not a multiple of the devices that divide it, or two dimensions use the same mesh axis.
    """
    spec = partition_spec(axes, rules)
    used = [place for entry in spec for place in ((entry,) if isinstance(entry, str) else entry or ())]
    for place in used:
        if used.count(place) > 1:
            both = " and ".join(repr(axis) for axis, entry in zip(axes, spec, strict=True) if entry and place in entry)
            raise MeshError(
                f"config.mesh.rules: parameter {name} has the axes {axes}, of which {both} would both be divided over {place!r}. "
                "Assign one of them to another mesh axis, or to none."
            )
    for size, axis, entry in zip(shape, axes, spec, strict=True):
        devices = _axis_size(mesh.shape, entry)
        if size % devices:
            entry = entry if isinstance(entry, str) else " x ".join(entry)
            raise MeshError(
                f"mesh: parameter {name} has {size} {axis!r} entries, which {devices} devices of axis {entry!r} cannot divide "
                f"equally ({size} = {size // devices} x {devices} + {size % devices}). "
                f"Change mesh.{entry} or the model's size; a vocabulary can be padded with --config.model.vocab_size."
            )
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: AnyMesh, shapes: Any, axes: Any, rules: Mapping[str, Any] = RULES) -> Any:
    """Apply `param_sharding` to a nested dict of shapes and one of logical axes with the same structure."""

    def one(path: tuple[Any, ...], leaf: Any, leaf_axes: LogicalAxes) -> NamedSharding:
        return param_sharding(mesh, "/".join(str(key.key) for key in path), leaf.shape, leaf_axes, rules)

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def over_data(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """Divide an array over `data` too, along its first axis that is divisible; return the sharding unchanged if none is.

    This suits arrays that each step reads and writes once, such as an optimizer's moments: each device updates its part (ZeRO-1,
    Rajbhandari et al. 2019, section 5.1).
    """
    mesh, spec = sharding.mesh, [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    devices = mesh.shape["data"]
    for place, (size, entry) in enumerate(zip(shape, spec, strict=True)):
        if devices > 1 and size % (devices * _axis_size(mesh.shape, entry)) == 0:
            own = (entry,) if isinstance(entry, str) else entry or ()
            spec[place] = (*own, "data")
            return NamedSharding(mesh, PartitionSpec(*spec))
    return sharding


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Return the sharding of a batch array: data, fsdp and expert divide the axis after `leading` undivided ones."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, RULES["batch"]))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding of an array that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain the sharding of an activation inside jit on the current mesh (`jax.set_mesh`).

    Without a mesh, and inside `jax.shard_map`, where the array is the device's own part, return it unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    pairs = zip(axes, x.shape, strict=True)
    axes = tuple(None if axis == "length" and length_parts(size) == 1 else axis for axis, size in pairs)
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def constrain_param(x: jax.Array, axes: Sequence[str | None], rules: Mapping[str, Any] = RULES) -> jax.Array:
    """`constrain` an array that is divided like a parameter with these axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, rules))


def batch_parts(mesh: AbstractMesh | None = None) -> int:
    """Return the number of parts into which a mesh, by default the current one, divides batches.

    It is 1 without a mesh, inside `jax.shard_map`, and if the mesh also divides positions.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if mesh.empty or mesh.manual_axes or mesh.shape["context"] > 1 else batch_shards(mesh.shape)


def per_part(run: Callable[..., Any], copies: jax.Array, rows: Sequence[jax.Array], whole: Any = None) -> Any:
    """Call `run(copy, rows, whole)` for each part of the batch.

    Args:
      run: function that returns arrays [B, ...], or sums [1].
      copies: [G, ...]; a part has its own copy, whose gradient is not summed over parts.
      rows: arrays [B, ...]; a part has its own rows.
      whole: arrays that every part has in full.
    """
    parts = PartitionSpec(RULES["batch"])

    def on_part(copies: jax.Array, rows: Sequence[jax.Array], whole: Any) -> Any:
        return run(copies[0], rows, whole)

    return jax.shard_map(
        on_part,
        in_specs=(parts, parts, PartitionSpec()),
        out_specs=parts,
        axis_names=set(RULES["batch"]),
        check_vma=False,
    )(copies, tuple(rows), whole)


def length_parts(length: int) -> int:
    """Return the number of parts into which the current mesh divides sequences of this length; 1 if it cannot divide them equally.

    So a decoder can have short targets of any length while the sources of the encoder are divided.
    """
    return context_size() if length % context_size() == 0 else 1


def context_size() -> int:
    """Return the size of the current mesh's context axis; 1 without a mesh and inside `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.shape["context"]


def parameter_parts(axis: str | None) -> int:
    """Return the number of parts into which the current mesh divides an axis of parameters under `RULES`."""
    return _axis_size(jax.sharding.get_abstract_mesh().shape, RULES.get(axis or ""))


def gathers_parameters() -> bool:
    """Whether devices hold parts of parameters (fsdp), which are gathered where they are used."""
    return jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1


def first_row(rows: int) -> jax.Array:
    """Return the index in the whole batch of this device's first row, inside `jax.shard_map` with `rows` rows per device."""
    place = _places[-1] if _places else jax.lax.axis_index(RULES["batch"])
    return place * rows


_places: list[jax.Array] = []


@contextlib.contextmanager
def as_batch_shard(place: jax.Array) -> Iterator[None]:
    """Trace a per-device program as if the device were the one at `place` among the batch's devices.

    Inside, a device has the rows of that place instead of its own, and all heads.
    """
    _places.append(place)
    try:
        yield
    finally:
        _places.pop()


def per_device(
    run: Callable[..., jax.Array],
    heads: Sequence[jax.Array | None],
    rows: Sequence[jax.Array | None],
    whole: Any,
) -> jax.Array:
    """Call `run(heads, rows, whole)`, on a mesh of several devices inside `jax.shard_map`, for operations that XLA cannot divide.

    Args:
      run: function that returns [B, L, H, K]; a device passes its rows and heads of all arguments but `whole`.
      heads: arrays [B, ?, H, K], [B, H, ?] or [H, ?], or None.
      rows: arrays [B, ?], or None.
      whole: arrays that every device has in full.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return run(heads, rows, whole)
    axes = {4: ("batch", None, "act_heads"), 3: ("batch", "act_heads", None), 2: ("act_heads", None)}
    in_specs = (
        [None if x is None else partition_spec(axes[x.ndim]) for x in heads],
        [None if x is None else partition_spec(("batch", None)) for x in rows],
        jax.tree.map(lambda x: PartitionSpec(), whole),
    )

    def on_device(merged: list[jax.Array | None], rows: list[jax.Array | None], whole: Any) -> jax.Array:
        return _merge_heads(run([_split_heads(*pair) for pair in zip(merged, heads, strict=True)], rows, whole))

    # Heads cross as [B, L, H K], in which projections write them: XLA gives [B, L, H, K] a layout of its own, and copies.
    per_part = jax.shard_map(
        on_device, mesh=mesh, in_specs=in_specs, out_specs=partition_spec(axes[4]), check_vma=False
    )
    merged = [None if x is None else _merge_heads(x) for x in heads]
    out = _split_heads(per_part(merged, list(rows), whole), heads[0])
    assert out is not None
    return out


def _merge_heads(x: jax.Array) -> jax.Array:
    """Reshape [B, L, H, K] to [B, L, H K]; leave other arrays as they are."""
    return x.reshape(*x.shape[:2], -1) if x.ndim == 4 else x


def _split_heads(x: jax.Array | None, whole: jax.Array | None) -> jax.Array | None:
    """Undo `_merge_heads` of `whole`, or of a device's part of it."""
    if x is None or whole is None or whole.ndim < 4:
        return x
    return x.reshape(*x.shape[:2], -1, whole.shape[3])


def first_head(heads: int) -> jax.Array:
    """Return the index among all heads of this device's first head, inside `jax.shard_map` with `heads` heads per device."""
    return jnp.int32(0) if _places else jax.lax.axis_index(RULES["act_heads"]) * heads


def flatten_rows(x_BL: jax.Array) -> jax.Array:
    """Flatten [B, L, ...] to [B L, ...] in an order that keeps each device's positions on the device.

    If `context` divides L, row-major order would interleave the parts of the devices, and XLA would gather them first. So the parts
    are concatenated instead: [parts, B, L / parts, ...].
    """
    parts, each = length_parts(x_BL.shape[1]), x_BL.shape[2:]
    if parts > 1:
        x_BL = jnp.moveaxis(x_BL.reshape(x_BL.shape[0], parts, -1, *each), 1, 0)
        x_BL = constrain(x_BL, "length", "batch", *(None,) * (x_BL.ndim - 2))
    return x_BL.reshape(-1, *each)
