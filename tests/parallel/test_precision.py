"""The compute type that model.dtype=auto means, and products of bfloat16 on CPUs."""

from __future__ import annotations

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.attention.module import dot_product_attention
from lm_research.models.cpu_products import bfloat16_product, multiplies_bfloat16, transposed
from lm_research.models.families import define_model
from lm_research.models.heads import Projection
from lm_research.objectives.cross_entropy import token_loss
from lm_research.parallel import precision


@pytest.mark.parametrize(
    ("platform", "version", "scan_layers", "flags", "dtype"),
    [
        ("tpu", (0, 10, 2), True, (), "bfloat16"),
        ("gpu", (0, 10, 2), True, (), "bfloat16"),
        ("cpu", (0, 12, 0), True, ("avx512_bf16", "amx_bf16"), "bfloat16"),
        ("cpu", (0, 10, 2), True, ("avx512_bf16", "amx_bf16"), "float32"),
        ("cpu", (0, 10, 2), False, ("avx512_bf16", "amx_bf16"), "bfloat16"),
        ("cpu", (0, 12, 0), False, ("avx2", "avx512_bf16"), "float32"),
        ("cpu", (0, 12, 0), False, (), "float32"),
    ],
)
def test_auto_follows_the_platform(
    platform: str,
    version: tuple[int, ...],
    scan_layers: bool,
    flags: tuple[str, ...],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    config = tiny.config("bert", model={"dtype": "auto", "scan_layers": scan_layers})
    assert precision.with_dtype(config, platform).model.dtype == dtype
    for given in ("float32", "bfloat16"):
        config = tiny.config("bert", model={"dtype": given})
        assert precision.with_dtype(config, platform) is config


def test_a_model_of_auto_has_the_type_of_this_platform() -> None:
    config = tiny.config("bert", model={"dtype": "auto"})
    assert define_model(config.model, 64).arch.dtype == precision.auto_dtype(config.model.scan_layers)


def test_flags_are_those_of_the_first_processor(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu amx_tile amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert precision.processor_flags(str(file)) == {"fpu", "amx_tile", "amx_bf16"}
    assert precision.processor_flags(str(tmp_path / "missing")) == frozenset()


def arguments() -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, shape).astype(jnp.bfloat16)
        for key, shape in zip(keys, ((64, 32), (32, 48), (64, 48)), strict=True)
    )


def with_gradients(product, x_RI: jax.Array, matrix_IO: jax.Array, y_RO: jax.Array) -> tuple[jax.Array, ...]:
    value, back = jax.vjp(lambda *factors: product(*factors).astype(y_RO.dtype), x_RI, matrix_IO)
    return value, *back(y_RO)


def test_products_of_bfloat16_and_their_gradients() -> None:
    """Against float32 products of the same numbers, within two roundings to bfloat16 (2^-9 each)."""
    given = arguments()
    found = jax.jit(lambda *args: with_gradients(bfloat16_product, *args))(*given)
    with jax.default_matmul_precision("float32"):
        expected = with_gradients(jnp.matmul, *(x.astype(jnp.float32) for x in given))
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            ours.astype(jnp.float32), exact, rtol=2**-8, atol=2**-8 * float(jnp.abs(exact).max())
        )


def test_no_product_of_a_layer_becomes_one_of_float32() -> None:
    """The compiled products read bfloat16, in jax 0.10.2 too, where products that return bfloat16 are converted to float32 first."""
    text = jax.jit(lambda *args: with_gradients(bfloat16_product, *args)).lower(*arguments()).compile().as_text()
    products = [computation for computation in text.split("\n}\n") if " dot(" in computation]
    assert sum(computation.count(" dot(") for computation in products) == 3
    for computation in products:
        read = [line for line in computation.splitlines() if " parameter(" in line]
        assert read and all(" = bf16[" in line for line in read) and " convert(" not in computation


@pytest.mark.parametrize("groups", [4, 2])
def test_attention_in_bfloat16_and_its_gradients(groups: int) -> None:
    """Against float32 of the same numbers within a few roundings (2^-9 each), and no factor of the six products is read by columns."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 24, 4, 8), (2, groups, 24, 8), (2, groups, 24, 8)
    given = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    bias = jnp.where(jnp.tri(24, dtype=bool), 0.0, -1e9)[None, None]

    def attend(*given: jax.Array) -> tuple[jax.Array, ...]:
        mixed, pull = jax.vjp(lambda *rows: dot_product_attention(*rows, bias, 0.3), *given)
        return mixed, *pull(given[0])

    compiled = jax.jit(attend).lower(*given).compile()
    products = [line for line in compiled.as_text().splitlines() if " dot(" in line]
    assert len(products) == 6
    for product in products:
        last = re.search(r"lhs_contracting_dims={(\d)}, rhs_batch_dims={.*}, rhs_contracting_dims={(\d)}", product)
        assert last and last.groups() == ("3", "2"), product
    with jax.default_matmul_precision("float32"):
        expected = attend(*(x.astype(jnp.float32) for x in given))
    for ours, exact in zip(compiled(*given), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            ours.astype(jnp.float32), exact, rtol=2**-7, atol=2**-7 * float(jnp.abs(exact).max())
        )


@pytest.mark.parametrize("rows", [64, 1024], ids=["one slice", "two slices"])
def test_no_product_of_the_loss_reads_columns(rows: int) -> None:
    """Of the six factors, one that is read by columns would be converted to float32, whose products take three times as long."""

    def loss(hidden_BMD: jax.Array, table_VD: jax.Array) -> jax.Array:
        targets, weights = jnp.zeros((1, rows), jnp.int32), jnp.ones((1, rows))
        return token_loss(Projection(hidden_BMD, table_VD, None, None), targets, weights).loss

    given = jax.ShapeDtypeStruct((1, rows, 32), jnp.bfloat16), jax.ShapeDtypeStruct((200, 32), jnp.float32)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) == 3
    for product in products:
        assert "lhs_contracting_dims={1}, rhs_contracting_dims={0}" in product


@pytest.mark.skipif(jax.__version_info__ < precision.LOOPING_JAX, reason="earlier versions convert loops to float32")
def test_a_transposed_copy_is_not_fused_with_what_it_copies() -> None:
    """A layer's part of a loop's stack, transposed in the fusion that slices it, takes 8 times as long."""

    def products(stack_NIO: jax.Array, y_IR: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda _, x_IO: (None, transposed(x_IO) @ y_IR), None, stack_NIO)[1]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((3, 256, 128), (256, 64))]
    computations = jax.jit(products).lower(*shapes).compile().as_text().split("\n}\n")
    assert any(" transpose(" in one or " copy(" in one for one in computations)
    assert not any(" transpose(" in one and " dynamic-slice(" in one for one in computations)


def test_other_types_and_platforms_keep_their_products() -> None:
    assert not multiplies_bfloat16(jnp.dtype("float32"))
    assert multiplies_bfloat16(jnp.dtype("bfloat16"))
