"""Logical axes on mesh axes. Abstract meshes replace machines that are not available."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from helpers import tiny
from lm_research.config import MeshConfig
from lm_research.errors import MeshError
from lm_research.parallel import rules
from lm_research.parallel.mesh import AXES
from lm_research.parallel.rules import (
    RULES,
    as_batch_shard,
    batch_sharding,
    batch_shards,
    constrain,
    context_size,
    first_head,
    first_row,
    flatten_rows,
    length_parts,
    over_data,
    param_sharding,
    partition_spec,
    per_device,
    resolve_rules,
    tree_shardings,
)


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1, expert: int = 1) -> AbstractMesh:
    return AbstractMesh(
        (data, fsdp, expert, context, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
    )


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("embed", "mlp"), PartitionSpec("fsdp", "tensor")),
        (("layers", "embed", "heads", None), PartitionSpec(None, "fsdp", "tensor", None)),
        (("vocab", "embed"), PartitionSpec("tensor", "fsdp")),
        (("batch", None, "act_mlp"), PartitionSpec(("data", "fsdp", "expert"), None, "tensor")),
        (("batch", "length", None), PartitionSpec(("data", "fsdp", "expert"), "context", None)),
        ((None,), PartitionSpec(None)),
    ],
)
def test_names_become_mesh_axes(axes: tuple, expected: PartitionSpec) -> None:
    assert partition_spec(axes) == expected


def test_what_cannot_be_divided_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(MeshError) as refused:
        param_sharding(mesh(tensor=4), "decoder/layers/query/kernel", (2, 16, 9, 8), ("layers", "embed", "heads", None))
    assert str(refused.value) == (
        "mesh: parameter decoder/layers/query/kernel has 9 'heads' entries, which 4 devices of axis 'tensor' cannot divide "
        "equally (9 = 2 x 4 + 1). Change mesh.tensor or the model's size; a vocabulary can be padded with "
        "--config.model.vocab_size."
    )


def test_a_dimension_that_is_not_divided_may_have_any_size() -> None:
    sharding = param_sharding(mesh(data=8, tensor=4), "w", (9, 12), ("embed", "heads"))
    assert sharding.shard_shape((9, 12)) == (9, 3)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_shards_of_a_model_add_up(family: str) -> None:
    definition = tiny.model(family)
    shardings = tree_shardings(mesh(data=2, fsdp=4, tensor=2), definition.shapes, definition.axes)
    places = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), definition.shapes, shardings)
    stack = places["encoder" if family == "bert" else "decoder"]
    # V 64 over tensor 2, D 16 over fsdp 4, H 2 and F 32 over tensor 2; K 8 and the norms stay whole.
    assert stack["embeddings"]["tokens"] == (32, 4) and stack["embeddings"]["positions"] == (16, 4)
    layers = stack["layers"]
    assert layers["attention"]["query"] == {"kernel": (2, 4, 1, 8), "bias": (2, 1, 8)}
    assert layers["attention"]["output"] == {"kernel": (2, 1, 8, 4), "bias": (2, 4)}
    assert layers["feed_forward"]["up"] == {"kernel": (2, 4, 16), "bias": (2, 16)}
    assert layers["feed_forward"]["down"] == {"kernel": (2, 16, 4), "bias": (2, 4)}
    assert layers["attention_norm"] == {"scale": (2, 16), "bias": (2, 16)}


def test_an_indivisible_model_names_its_parameter() -> None:
    definition = tiny.model("bert", hidden_size=27, num_heads=9)
    with pytest.raises(MeshError, match=r"parameter encoder/layers/attention/key/bias has 9 'heads' .*9 = 2 x 4 \+ 1"):
        tree_shardings(mesh(tensor=4), definition.shapes, definition.axes)


def test_batches_are_on_data_and_fsdp() -> None:
    assert batch_sharding(mesh(2, 2, 2)).shard_shape((16, 5)) == (4, 5)
    assert batch_sharding(mesh(2, 2, 2), leading=1).shard_shape((3, 16, 5)) == (3, 4, 5)


def test_constrain_does_nothing_without_a_mesh() -> None:
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x


def test_over_data_takes_the_first_axis_that_can_be_divided() -> None:
    eight = mesh(data=4, fsdp=2)

    def place(*spec):
        return NamedSharding(eight, PartitionSpec(*spec))

    assert over_data(place(None, "fsdp"), (3, 16)).spec == PartitionSpec(
        None, ("fsdp", "data")
    )  # 3 cannot, 16 = 2 x 4 x 2 can
    assert over_data(place("fsdp"), (4, 8)).spec == PartitionSpec("fsdp", ("data",))  # 4 / 2 is not a multiple of 4
    assert over_data(place(), (3, 5)).spec == PartitionSpec()
    assert over_data(NamedSharding(mesh(data=2), PartitionSpec()), (6,)).spec == PartitionSpec(("data",))
    assert over_data(NamedSharding(mesh(fsdp=8), PartitionSpec("fsdp")), (8,)).spec == PartitionSpec("fsdp")


def test_a_run_maps_the_axes_of_its_parameters_as_configured() -> None:
    given = {"vocab": ["fsdp", "tensor"], "embed": ["none"], "mlp": ["fsdp"]}
    rules = resolve_rules(given)
    assert (
        resolve_rules(MeshConfig(rules="vocab=fsdp+tensor, embed=none,mlp=fsdp").rules) == rules
    )  # the earlier spelling
    grid = mesh(data=2, fsdp=4, tensor=2)
    table = param_sharding(grid, "tokens", (64, 12), ("vocab", "embed"), rules)
    assert table.spec == PartitionSpec(("fsdp", "tensor"), None) and table.shard_shape((64, 12)) == (8, 12)
    assert param_sharding(grid, "w", (12, 8), ("embed", "mlp"), rules).shard_shape((12, 8)) == (12, 2)
    assert param_sharding(grid, "q", (12, 4), ("embed", "heads"), rules).shard_shape((12, 4)) == (12, 2)  # the default
    assert resolve_rules(None) == resolve_rules(MeshConfig(rules="").rules) == RULES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch=fsdp", "'batch' is not an axis of parameters. Valid: embed, expert, heads, layers, mlp, vocab"),
        ("vocab=fsdq", "is not a mesh axis. Did you mean 'fsdp'"),
        ("vocab=fsdp+none", "is not a mesh axis"),
    ],
)
def test_rules_that_cannot_be_read_are_refused(text: str, words: str) -> None:
    with pytest.raises(MeshError, match=words):
        resolve_rules(MeshConfig(rules=text).rules)


def test_two_axes_on_the_same_devices_are_refused() -> None:
    with pytest.raises(MeshError, match="'vocab' and 'embed' would both be divided over 'fsdp'"):
        param_sharding(mesh(fsdp=4), "tokens", (64, 12), ("vocab", "embed"), resolve_rules({"vocab": ("fsdp",)}))


def test_dimensions_that_several_axes_divide_are_named_with_all_of_them() -> None:
    rules = resolve_rules({"vocab": ("fsdp", "tensor"), "embed": ("none",)})
    with pytest.raises(
        MeshError, match=r"has 12 'vocab' entries, which 8 devices of axis 'fsdp x tensor' cannot .*12 = 1 x 8 \+ 4"
    ):
        param_sharding(mesh(fsdp=4, tensor=2), "tokens", (3, 12, 5), (None, "vocab", "embed"), rules)
    with pytest.raises(MeshError, match="of which 'vocab' and 'mlp' would both be divided over 'tensor'"):
        param_sharding(mesh(tensor=2), "w", (3, 2, 2, 2), (None, "vocab", "mlp", "embed"))


@pytest.mark.parametrize(("context", "length", "parts"), [(2, 6, "context"), (2, 5, None), (1, 6, None)])
def test_activations_are_divided_where_their_length_allows_it(context: int, length: int, parts: str | None) -> None:
    """The only operation is the constraint; an axis of another name is divided whatever its size."""
    with jax.sharding.use_abstract_mesh(mesh(data=2, context=context, tensor=2)):
        jaxpr = jax.make_jaxpr(lambda x: constrain(x, "batch", "length", None, "act_heads"))(
            jnp.zeros((4, length, 3, 1))
        )
    (constraint,) = jaxpr.eqns
    assert constraint.params["sharding"].spec == PartitionSpec(("data", "fsdp", "expert"), parts, None, "tensor")
    with jax.sharding.use_abstract_mesh(mesh()):  # of one device
        assert not jax.make_jaxpr(lambda x: constrain(x, "batch", None))(jnp.zeros((4, 3))).eqns


def test_devices_run_on_their_rows_and_heads() -> None:
    """On 2 x 2 devices for rows and 2 for heads; inside, the array is the device's own part, and nothing is divided further."""

    def run(heads: list, rows: list, whole: jax.Array) -> jax.Array:
        manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
        assert context_size() == 1 and not (manual and constrain(heads[0], "batch") is not heads[0])
        seen.append([manual, heads[0].shape, rows[0].shape, rows[1], whole.shape])
        return per_device(lambda heads, rows, whole: 2 * heads[0], heads, rows, whole) if manual else 2 * heads[0]

    def call(heads: jax.Array, rows: jax.Array, whole: jax.Array) -> jax.Array:
        return per_device(run, [heads], [rows, None], whole)

    arrays, divided = [jnp.zeros((8, 6, 4, 3)), jnp.zeros((8, 6)), jnp.zeros((5, 7))], [(2, 6, 2, 3), (2, 6)]
    for grid, shapes in (
        (mesh(2, 2, 2, 2), divided),
        (mesh(data=2), [(4, 6, 4, 3), (4, 6)]),
        (mesh(), None),
        (None, None),
    ):
        seen: list = []
        with jax.sharding.use_abstract_mesh(grid) if grid else contextlib.nullcontext():
            assert jax.eval_shape(call, *arrays).shape == (8, 6, 4, 3)
        assert seen == [[bool(shapes), *(shapes or [x.shape for x in arrays[:2]]), None, (5, 7)]]


def test_first_rows_and_heads_of_devices() -> None:
    """Devices are numbered along data, then fsdp, then expert; heads along tensor. As a part of the batch, a device has all heads."""

    def on_devices(work: Callable[[], jax.Array], **sizes: int) -> list:
        def function(_: jax.Array) -> jax.Array:
            return work()

        for name in reversed(sizes):
            function = jax.vmap(function, axis_name=name)
        return function(jnp.zeros(tuple(sizes.values()))).tolist()

    assert on_devices(lambda: first_row(4), data=2, fsdp=1, expert=3) == [[[0, 4, 8]], [[12, 16, 20]]]
    assert on_devices(lambda: first_head(5), tensor=3) == [0, 5, 10]
    with as_batch_shard(jnp.int32(3)):
        assert int(first_row(4)) == 12
        with as_batch_shard(jnp.int32(5)):
            assert (int(first_row(4)), int(first_head(5))) == (20, 0)
        assert int(first_row(4)) == 12
    assert on_devices(lambda: first_row(4), data=1, fsdp=2, expert=1) == [[[0], [4]]]


def test_flattened_rows_are_the_parts_of_the_devices_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    x, given = np.arange(2 * 6 * 3 * 2).reshape(2, 6, 3, 2), []
    assert flatten_rows(x).tolist() == x.reshape(12, 3, 2).tolist()
    monkeypatch.setattr(rules, "length_parts", lambda length: {6: 2}[length])
    monkeypatch.setattr(rules, "constrain", lambda x, *axes: (given.append(axes), x)[1])
    expected = np.concatenate([x[:, :3].reshape(6, 3, 2), x[:, 3:].reshape(6, 3, 2)])
    assert flatten_rows(jnp.asarray(x)).tolist() == expected.tolist()
    assert given == [("length", "batch", None, None, None)]


def test_a_batch_is_divided_over_data_and_fsdp() -> None:
    assert batch_shards(mesh(data=2, fsdp=3, expert=11, context=5, tensor=7).shape) == 2 * 3 * 11
    assert batch_shards({"data": 1, "fsdp": 1, "expert": 1}) == 1


@pytest.mark.parametrize(("context", "length", "parts"), [(1, 6, 1), (2, 6, 2), (2, 5, 1), (4, 6, 1), (4, 8, 4)])
def test_rows_are_divided_where_their_length_allows_it(context: int, length: int, parts: int) -> None:
    """Five positions are whole on two devices, six on four; flattening keeps every position."""
    with jax.sharding.use_abstract_mesh(mesh(context=context)):
        assert length_parts(length) == parts
        found = jax.eval_shape(flatten_rows, jnp.zeros((2, length, 3)))
    assert found.shape == (2 * length, 3) and length_parts(length) == 1
