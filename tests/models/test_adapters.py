"""Adapters against arithmetic: what they add, their initial values, and their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import LoraConfig, resolve
from lm_research.errors import ConfigError
from lm_research.models.adapters import adapt, dropped, is_adapter, merged, product
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import DEFAULT_HEADS, define_model
from lm_research.models.forward import forward
from lm_research.trees import flatten, unflatten

LORA = LoraConfig(rank=2, alpha=6.0)  # s = 3


def base(family: str) -> ModelDefinition:
    model = dict(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_length=16,
        vocab_size=64,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    section = resolve({"model": model, "data": {"max_length": 16}, "tokenizer": {"vocab_size": 64}}).model
    kind = define_model(section, 64).arch.kind
    return define_model(section, 64, "classification" if kind == "encoder" else DEFAULT_HEADS[kind])


def inputs(definition: ModelDefinition) -> dict[str, np.ndarray]:
    ids = np.arange(24).reshape(2, 12) % 60 + 2
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5]} if definition.arch.encoder else {})


def logits(definition: ModelDefinition, params: Any) -> np.ndarray:
    run = tiny.jit(lambda params: forward(definition.bind(params), definition.head.name, inputs(definition))["logits"])
    return np.asarray(run(params))


@pytest.mark.parametrize("family", tiny.families("bert", "gpt2", "llama", "albert", "t5"))
def test_a_new_adapter_keeps_the_function_of_the_base_bit_for_bit(family: str) -> None:
    """B is 0, A is not: two matrices of each attention, that of a decoder to its encoder too."""
    definition = base(family)
    adapted = adapt(definition, LORA)
    leaves = flatten(tiny.random_params(adapted))
    start = unflatten({path: np.zeros_like(x) if path.endswith("lora_b") else x for path, x in leaves.items()})
    params = unflatten({path: x for path, x in leaves.items() if not is_adapter(path)})
    layers = {path.rpartition("/")[0] for path in flatten(adapted.shapes) if is_adapter(path)}
    assert {path.split("/")[-1] for path in layers} == {"query", "value"}
    assert len(layers) == (6 if definition.arch.encoder is not None else 2)
    merged_leaves = flatten(tiny.jit(adapted.merged)(start))
    assert all(np.array_equal(merged_leaves[path], x) for path, x in flatten(params).items())
    np.testing.assert_allclose(
        logits(adapted, start), logits(definition, params), rtol=1e-4, atol=1e-5
    )  # other programs


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_kernel_is_the_sum(family: str) -> None:
    """W + s A B of each layer, here by einsum; the merged model computes the same."""
    adapted = adapt(base(family), LoraConfig(rank=2, alpha=6.0, target_modules="query,attention/output"))
    params = tiny.random_params(adapted)
    leaves, (plain, found) = flatten(params), merged(adapted, params)
    stack = "encoder/layers/attention"
    query = np.einsum("ndr,nrhk->ndhk", leaves[f"{stack}/query/lora_a"], leaves[f"{stack}/query/lora_b"])
    output = np.einsum("nhkr,nrd->nhkd", leaves[f"{stack}/output/lora_a"], leaves[f"{stack}/output/lora_b"])
    for name, change in (("query", query), ("output", output)):
        expected = leaves[f"{stack}/{name}/kernel"] + 3.0 * change
        np.testing.assert_allclose(flatten(found)[f"{stack}/{name}/kernel"], expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(found) == jax.tree.structure(plain.shapes)
    np.testing.assert_allclose(logits(plain, found), logits(adapted, params), rtol=1e-5, atol=1e-5)
    untouched = [path for path in flatten(plain.shapes) if "query" not in path and "output" not in path]
    assert all(np.array_equal(flatten(found)[path], leaves[path]) for path in untouched)


def test_the_square_root_of_the_rank() -> None:
    """rsLoRA: alpha / sqrt(4) = 4 and not alpha / 4 = 2."""
    params = None
    for rslora, scale in ((False, 2.0), (True, 4.0)):
        adapted = adapt(base("gpt2"), LoraConfig(rank=4, alpha=8.0, rslora=rslora))
        params = params or tiny.random_params(adapted)
        layer = params["decoder"]["layers"]["attention"]["value"]
        change = product(layer["lora_a"], layer["lora_b"], stacked=True)
        kernel = merged(adapted, params)[1]["decoder"]["layers"]["attention"]["value"]["kernel"]
        np.testing.assert_allclose(kernel - layer["kernel"], scale * change, rtol=1e-4, atol=1e-6)


def test_gradients_match_the_product_rule() -> None:
    """With G the gradient of the whole kernel: dL/dA = s G B^T and dL/dB = s A^T G, of each layer."""
    adapted = adapt(base("bert"), LORA)
    params, given = tiny.random_params(adapted), inputs(adapted)
    plain, whole = merged(adapted, params)
    weights = jnp.array([[1.0, -2.0], [0.5, 3.0]])

    def loss(definition: ModelDefinition, params: Any) -> jax.Array:
        return (weights * jnp.tanh(forward(definition.bind(params), "classification", given)["logits"])).sum()

    found = flatten(tiny.jit(jax.grad(lambda params: loss(adapted, params)))(params))
    full = flatten(tiny.jit(jax.grad(lambda params: loss(plain, params)))(whole))
    for name in ("query", "value"):
        path = f"encoder/layers/attention/{name}"
        a, b, g = flatten(params)[f"{path}/lora_a"], flatten(params)[f"{path}/lora_b"], full[f"{path}/kernel"]
        assert np.abs(g).max() > 1e-3
        np.testing.assert_allclose(found[f"{path}/lora_a"], 3 * np.einsum("ndhk,nrhk->ndr", g, b), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found[f"{path}/lora_b"], 3 * np.einsum("ndr,ndhk->nrhk", a, g), rtol=1e-3, atol=1e-5)


def test_initial_values_of_a() -> None:
    """B with 0; A with mean 0 and variance 1 / inputs, other numbers for each matrix and seed: 2 x 256 x 16 of them, so about 1% off."""
    model = dict(family="gpt2", hidden_size=256, num_heads=2, num_layers=2, intermediate_size=64, max_length=16)
    adapted = adapt(define_model(resolve({"model": model, "data": {"max_length": 16}}).model, 64), LoraConfig(rank=16))
    first = tiny.jit(adapted.init)
    a, b = (first(np.uint32(seed))["decoder"]["layers"]["attention"] for seed in (0, 1))
    drawn = np.asarray(a["query"]["lora_a"])
    assert drawn.mean() == pytest.approx(0.0, abs=0.003) and drawn.std() == pytest.approx(256**-0.5, rel=0.03)
    assert not np.allclose(drawn, a["value"]["lora_a"]) and not np.allclose(drawn, b["query"]["lora_a"])
    assert not np.allclose(drawn[0], drawn[1]) and not np.any(a["query"]["lora_b"])
    assert drawn.shape == (2, 256, 16) and a["query"]["lora_b"].shape == (2, 16, 2, 128)


def test_axes_follow_the_kernel() -> None:
    """A has the sharding of the kernel's inputs, B that of its outputs; the rank is not divided."""
    axes = adapt(base("bert"), LoraConfig(rank=2, target_modules="query,attention/output")).axes["encoder"]["layers"][
        "attention"
    ]
    assert axes["query"]["lora_a"] == ("layers", "embed", None)
    assert axes["query"]["lora_b"] == ("layers", None, "heads", None)
    assert axes["output"]["lora_a"] == ("layers", "heads", None, None)
    assert axes["output"]["lora_b"] == ("layers", None, "embed")


def test_dropped_inputs() -> None:
    """A fifth of A's rows are 0, the others 1 / 0.8 times as large; nothing else changes; each matrix and key drops others; no key, none."""
    params = unflatten(
        {"x/lora_a": jnp.ones((3, 40, 2)), "x/lora_b": jnp.ones((3, 2, 4)), "x/kernel": jnp.ones((3, 40, 4))}
        | {"y/lora_a": jnp.ones((3, 40, 2))}
    )
    both = dropped(params, 0.2, jax.random.key(0))
    found, rows = both["x"], np.asarray(both["x"]["lora_a"])
    assert set(np.unique(rows)) == {0.0, 1.25} and (rows[..., 0] == rows[..., 1]).all()
    assert 2 < (rows[..., 0] == 0).sum() < 46 and (rows[0] != rows[1]).any()  # 24 of 120, and five deviations of 4.4
    assert (both["y"]["lora_a"] != rows).any()
    assert (found["lora_b"] == 1).all() and (found["kernel"] == 1).all()
    assert (dropped(params, 0.2, jax.random.key(1))["x"]["lora_a"] != rows).any()
    assert dropped(params, 0.5, None) is params and dropped(params, 0.0, jax.random.key(0)) is params


WRONG = {
    "(": "not a regular expression",
    "attention/keys": r"'attention/keys' matches no matrix. This model's matrices are .*encoder/layers/attention/key",
    "embeddings": "matches no matrix",
    " , ": "target_modules is empty",
}


@pytest.mark.parametrize("targets", WRONG)
def test_targets_that_cannot_be_used(targets: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[targets]):
        adapt(base("bert"), LoraConfig(rank=2, target_modules=targets))


def test_a_rank_that_is_not_low() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.rank=17 is larger than the smaller side of encoder/layers/attention/query/kernel, 16"
    ):
        adapt(base("bert"), LoraConfig(rank=17))
