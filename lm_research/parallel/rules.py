"""Which logical axis of an array lies on which mesh axis.

Parameters and activations name their axes ("embed", "heads", "batch", ...); `RULES` maps names to mesh axes and
is the only place where that is decided; `mesh.rules` of a run lays the axes of its parameters otherwise. A parameter axis that its
mesh axis cannot divide is refused with the arithmetic, because padding it silently would change memory and speed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm_research.errors import MeshError, suggest
from lm_research.parallel.mesh import AnyMesh

LogicalAxes = tuple[str | None, ...]

# Logical axis -> mesh axis or axes. Names that are missing here are never divided.
RULES: dict[str, str | tuple[str, ...]] = {
    # parameters
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    # activations
    "batch": ("data", "fsdp"),
    "length": "context",
    "act_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh with these axis sizes divides a batch."""
    return _axis_size(sizes, RULES["batch"])


# Of these a run may choose where they lie, and on which axes; activations follow the batch, and stay.
PARAMETER_AXES, _TARGETS = ("vocab", "heads", "mlp", "embed", "layers"), ("fsdp", "tensor", "context", "data", "none")


def resolve_rules(given: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """`RULES` with those of a run laid over them: {"vocab": ("fsdp",), "embed": ("none",), "mlp": ("tensor", "fsdp")}.

    Raises:
      MeshError: it names no axis of parameters, or no axis of the mesh.
    """
    rules: dict[str, Any] = dict(RULES)
    for name, places in (given or {}).items():
        if name not in PARAMETER_AXES:
            raise MeshError(f"config.mesh.rules: {name!r} is no axis of parameters. {suggest(name, PARAMETER_AXES)}")
        chosen = "+".join(places).split("+")
        for place in chosen:
            if place not in _TARGETS or (place == "none" and len(chosen) > 1):
                raise MeshError(
                    f"config.mesh.rules: {name}={'+'.join(chosen)} names no axis of the mesh. {suggest(place, _TARGETS)}"
                )
        rules[name] = None if chosen == ["none"] else tuple(chosen)
    return rules


def partition_spec(axes: Sequence[str | None], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """The PartitionSpec of logical axes, e.g. ("embed", "mlp") -> P("fsdp", "tensor")."""
    return PartitionSpec(*(rules.get(axis) if axis else None for axis in axes))


def _axis_size(sizes: Mapping[str, int], entry: str | tuple[str, ...] | None) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(sizes[name] for name in names)


def param_sharding(
    mesh: AnyMesh, name: str, shape: Sequence[int], axes: LogicalAxes, rules: Mapping[str, Any] = RULES
) -> NamedSharding:
    """Sharding of one parameter.

    Raises:
      MeshError: a dimension is not a multiple of the devices it would lie on, or two lie on the same ones.
    """
    spec = partition_spec(axes, rules)
    used = [place for entry in spec for place in ((entry,) if isinstance(entry, str) else entry or ())]
    for place in used:
        if used.count(place) > 1:
            both = " and ".join(repr(axis) for axis, entry in zip(axes, spec, strict=True) if entry and place in entry)
            raise MeshError(
                f"config.mesh.rules: parameter {name} has the axes {axes}, of which {both} would lie on {place!r} alike. "
                "Lay one of them elsewhere, or on none."
            )
    for size, axis, entry in zip(shape, axes, spec, strict=True):
        devices = _axis_size(mesh.shape, entry)
        if size % devices:
            entry = entry if isinstance(entry, str) else " x ".join(entry)
            raise MeshError(
                f"mesh: parameter {name} has {size} {axis!r} entries, which {devices} devices of axis {entry!r} cannot share "
                f"equally ({size} = {size // devices} x {devices} + {size % devices}). "
                f"Change mesh.{entry} or the model's size; a vocabulary can be padded with --config.model.vocab_size."
            )
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: AnyMesh, shapes: Any, axes: Any, rules: Mapping[str, Any] = RULES) -> Any:
    """`param_sharding` over a nested dict of shapes and one of logical axes with the same structure."""

    def one(path: tuple[Any, ...], leaf: Any, leaf_axes: LogicalAxes) -> NamedSharding:
        return param_sharding(mesh, "/".join(str(key.key) for key in path), leaf.shape, leaf_axes, rules)

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def over_data(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """The sharding with the array also divided over `data`, along its first axis that can be; unchanged if none can.

    For arrays that each step reads and writes once, as the moments of an optimizer: each device updates its part (ZeRO-1,
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
    """Sharding of a batch array: the axis after `leading` undivided ones lies on data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, RULES["batch"]))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation inside jit to its place on the current mesh (`jax.set_mesh`); without a mesh, nothing.

    Nor in a program per device (`jax.shard_map`), where the array is the device's own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    pairs = zip(axes, x.shape, strict=True)
    axes = tuple(None if axis == "length" and length_parts(size) == 1 else axis for axis, size in pairs)
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def length_parts(length: int) -> int:
    """Into how many parts the current mesh divides rows of so many positions; 1 if it cannot divide them equally.

    So a decoder with short targets of any length goes beside an encoder whose sources are divided.
    """
    return context_size() if length % context_size() == 0 else 1


def context_size() -> int:
    """Devices of the current mesh's context axis; 1 without a mesh and in a program per device."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.shape["context"]


def first_row(rows: int) -> jax.Array:
    """Number in the whole batch of this device's first row, in a program per device that holds `rows` of them."""
    place = _places[-1] if _places else jax.lax.axis_index(RULES["batch"])
    return place * rows


_places: list[jax.Array] = []


@contextlib.contextmanager
def as_batch_shard(place: jax.Array) -> Iterator[None]:
    """Trace a program per device as that of one place among the batch's devices.

    Inside, a device has the rows of this place, not of its own, and all heads.
    """
    _places.append(place)
    try:
        yield
    finally:
        _places.pop()


def per_device(
    run: Callable[..., jax.Array], heads: Sequence[jax.Array], rows: Sequence[jax.Array | None], whole: Any
) -> jax.Array:
    """`run(heads, rows, whole)`, on a mesh of several devices as a program per device (`jax.shard_map`): for what XLA cannot divide.

    Args:
      run: gives [B, L, H, K]; a device has its rows and heads of everything but `whole`.
      heads: arrays [B, ?, H, K].
      rows: arrays [B, ?], or None.
      whole: arrays that every device has whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return run(heads, rows, whole)
    of_heads, of_rows = partition_spec(("batch", None, "act_heads", None)), partition_spec(("batch", None))
    in_specs = (
        jax.tree.map(lambda x: of_heads, heads),
        jax.tree.map(lambda x: of_rows, rows),
        jax.tree.map(lambda x: PartitionSpec(), whole),
    )
    return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=of_heads, check_vma=False)(heads, rows, whole)


def first_head(heads: int) -> jax.Array:
    """Number among all heads of this device's first one, in a program per device that holds `heads` of them."""
    return jnp.int32(0) if _places else jax.lax.axis_index(RULES["act_heads"]) * heads


def flatten_rows(x_BL: jax.Array) -> jax.Array:
    """[B, L, ...] as [B L, ...], in an order in which each device's positions stay its own.

    Where `context` divides L, row after row would interleave the devices' parts, and XLA would gather them first. So there the
    parts come one after the other: [parts, B, L / parts, ...].
    """
    parts, each = length_parts(x_BL.shape[1]), x_BL.shape[2:]
    if parts > 1:
        x_BL = jnp.moveaxis(x_BL.reshape(x_BL.shape[0], parts, -1, *each), 1, 0)
        x_BL = constrain(x_BL, "length", "batch", *(None,) * (x_BL.ndim - 2))
    return x_BL.reshape(-1, *each)
