"""Blocks of other families, described as an Architecture, against transformers' models (block_goldens/make_goldens.py, transformers 5.24).

Legend: B batch, L length, D model width, E experts.
"""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny
from lm_research.interop.weight_reader import from_stored, weights_of
from lm_research.models import decode, feed_forward
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.attention.mask import attention_bias, chunk_segments
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor
from lm_research.models.feed_forward import Experts
from lm_research.models.heads import HeadSpec
from lm_research.models.load_balancing import load_balancing, router_load
from lm_research.models.positions import alibi_slopes
from lm_research.trees import flatten, unflatten

GOLDENS = pathlib.Path(__file__).parent / "block_goldens"
SIZES = dict(
    vocab_size=32,
    hidden_size=16,
    num_heads=2,
    intermediate_size=24,
    max_length=0,
    positions="rotary",
    rotary_theta=100.0,
)
SHARED = dict(num_kv_heads=1, head_size=8)
NO_BIAS = dict(qkv_bias=False, output_bias=False, mlp_bias=False)
LLAMA = dict(
    SIZES, **NO_BIAS, norm="pre", norm_kind="rms", norm_epsilon=1e-6, gated=True, activation="silu", causal=True
)
GEMMA = LLAMA | SHARED | dict(norm="sandwich", activation="gelu_tanh", embedding_scale=4.0, attention_scale=5**-0.5)
WHOLE = dict(attention="full", window=0, rotary_theta=1000.0)

# ModernBERT: layers 0, 3, 6 see all, the others 2 positions on each side; the first has no norm before its attention.
_NEAR, _FIRST = {}, dict(WHOLE, attention_norm=False)
MODERN = (_FIRST, _NEAR, _NEAR, WHOLE, _NEAR, _NEAR, WHOLE)
SAID: dict[str, Architecture] = {
    "modernbert": from_flat(
        MODERN,
        **SIZES,
        **NO_BIAS,
        num_layers=7,
        norm="pre",
        norm_bias=False,
        embedding_norm=True,
        gated=True,
        window=4,
    ),
    "gemma3": from_flat(
        (*({},) * 5, WHOLE), **GEMMA | dict(num_layers=7, window=4, query_key_norm="head", intermediate_size=8)
    ),
    "gemma2": from_flat(
        ({}, WHOLE | dict(rotary_theta=100.0)), **GEMMA, num_layers=3, window=4, score_cap=0.8, logit_cap=0.7
    ),
    "gpt_neox": from_flat(**SIZES, num_layers=2, causal=True, norm="parallel", rotary_fraction=0.5),
    "gptj": from_flat(
        **SIZES | dict(rotary_theta=1e4),
        num_layers=2,
        causal=True,
        norm="parallel",
        shared_norm=True,
        rotary_fraction=0.5,
        rotary_interleaved=True,
        qkv_bias=False,
        output_bias=False,
        activation="gelu_tanh",
    ),
    "qwen3": from_flat(**LLAMA, **SHARED, num_layers=2, query_key_norm="head"),
    "olmo2": from_flat(
        **LLAMA | dict(norm="output", norm_epsilon=1e-5), num_kv_heads=1, num_layers=2, query_key_norm="projection"
    ),
    "bloom": from_flat(
        vocab_size=32,
        hidden_size=12,
        num_heads=3,
        intermediate_size=48,
        max_length=0,
        num_layers=2,
        causal=True,
        norm="pre",
        positions="alibi",
        embedding_norm=True,
        activation="gelu_tanh",
    ),
    "mixtral": from_flat(**LLAMA | dict(norm_epsilon=1e-5), **SHARED, num_layers=2, num_experts=4, experts_per_token=2),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def named(name: str) -> tuple[ParamMapping, ...]:
    """Our arrays and their names in the file, after `split`."""
    stack = "encoder" if name == "modernbert" else "decoder"
    ours, layer, top = f"{stack}/layers", "h.{}" if name in ("bloom", "gptj") else "layers.{}", ""
    if name in ("gemma2", "gemma3"):
        layer, top = f"model.{layer}", "model."
    branch = {"modernbert": "attn", "gpt_neox": "attention", "gptj": "attn", "bloom": "self_attention"}.get(
        name, "self_attn"
    )
    norms = dict(attention="input_layernorm", feed_forward="post_attention_layernorm")
    if name.startswith("gemma"):
        norms |= dict(attention_output="post_attention_layernorm", feed_forward="pre_feedforward_layernorm")
        norms |= dict(feed_forward_output="post_feedforward_layernorm")
    norms = {
        "modernbert": dict(attention="attn_norm", feed_forward="mlp_norm"),
        "gptj": dict(attention="ln_1"),
        "olmo2": dict(attention="post_attention_layernorm", feed_forward="post_feedforward_layernorm"),
    }.get(name, norms)
    last = {"modernbert": "final_norm", "gpt_neox": "final_layer_norm", "gptj": "ln_f", "bloom": "ln_f"}.get(
        name, "norm"
    )
    tokens = {
        "modernbert": "embeddings.tok_embeddings",
        "gpt_neox": "embed_in",
        "gptj": "wte",
        "bloom": "word_embeddings",
    }.get(name, "embed_tokens")
    projections = {
        "gptj": (*PROJECTIONS[:3], "out_proj"),
        "modernbert": ("q", "k", "v", "Wo"),
        "gpt_neox": ("q", "k", "v", "dense"),
    }
    projections["bloom"] = projections["gpt_neox"]
    up, down = {"gptj": ("fc_in", "fc_out"), "modernbert": ("up", "Wo")}.get(name, ("dense_h_to_4h", "dense_4h_to_h"))
    if f"{name}" in ("gemma2", "gemma3", "qwen3", "olmo2", "mixtral"):
        up, down = "up_proj", "down_proj"
    mlp = f"{layer}.mlp"
    gate = "gate" if name == "modernbert" else "gate_proj"
    experts = name == "mixtral"
    plain, kind = dict(transpose=not experts), "expert_" if experts else ""
    return (
        *tensor(f"{stack}/embeddings/tokens", f"{top}{tokens}.weight"),
        *norm(f"{stack}/embeddings/norm", "embeddings.norm" if name == "modernbert" else "word_embeddings_layernorm"),
        *attention(f"{ours}/attention", f"{layer}.{branch}", *projections.get(name, PROJECTIONS)),
        *(
            tensor(f"{ours}/attention/{one}_norm/scale", f"{layer}.{branch}.{one[0]}_norm.weight")[0]
            for one in ("query", "key")
        ),
        *(weight for ours_, theirs in norms.items() for weight in norm(f"{ours}/{ours_}_norm", f"{layer}.{theirs}")),
        *dense(f"{ours}/feed_forward/router", f"{mlp}.gate"),
        *dense(f"{ours}/feed_forward/{kind}up", f"{mlp}.{up}", **plain),
        *dense(f"{ours}/feed_forward/{kind}gate", f"{mlp}.{gate}", **plain),
        *dense(f"{ours}/feed_forward/{kind}down", f"{mlp}.{down}", **plain),
        *norm(f"{stack}/final_norm", f"{top}{last}"),
    )


def split(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors that hold several of ours divided; norms of Gemma, which are 1 + weight, as factors."""
    found = {}
    for key, value in tensors.items():
        front, _, last = key.rpartition(".")
        if key.endswith("Wqkv.weight"):
            found |= {f"{key[:-11]}{part}.weight": x for part, x in zip("qkv", np.split(value, 3), strict=True)}
        elif "query_key_value" in key:  # of each head its three parts
            parts = np.moveaxis(value.reshape(SAID[name].num_heads, 3, -1, *value.shape[1:]), 1, 0)
            own = front.removesuffix("query_key_value")
            found |= {
                f"{own}{part}.{last}": x.reshape(-1, *value.shape[1:]) for part, x in zip("qkv", parts, strict=True)
            }
        elif key.endswith("Wi.weight"):
            found |= {f"{key[:-9]}{part}.weight": x for part, x in zip(("gate", "up"), np.split(value, 2), strict=True)}
        elif key.endswith("gate_up_proj"):
            own, halves = key.removesuffix("experts.gate_up_proj"), np.split(value.swapaxes(1, 2), 2, axis=-1)
            found |= {f"{own}{part}_proj.weight": x for part, x in zip(("gate", "up"), halves, strict=True)}
        elif key.endswith("experts.down_proj"):
            found[key.replace("experts.down_proj", "down_proj.weight")] = value.swapaxes(1, 2)
        else:
            found[key] = value + 1.0 if name.startswith("gemma") and "norm" in key else value
    return found


def load(name: str) -> tuple[ModelDefinition, Any, dict[str, np.ndarray]]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    tensors = {key[8:]: value.astype(np.float32) for key, value in golden.items() if key.startswith("weights/")}
    tensors = split(name, tensors)
    arch = SAID[name]
    definition = define(arch, HeadSpec("causal_lm" if arch.causal else "none", pooled=False))
    weights = weights_of(SimpleNamespace(weights=lambda arch, head: named(name)), definition)
    leaves = {}
    for path, leaf in flatten(definition.shapes).items():
        layers, shape = definition.layers_of(path), leaf.shape
        names = [
            weights[path].of_layer(weights[path].names[0], row) for row in range(1 if layers is None else len(layers))
        ]
        parts = [from_stored(weights[path], tensors.pop(one), shape if layers is None else shape[1:]) for one in names]
        leaves[path] = parts[0] if layers is None else np.stack(parts)
    assert not tensors, f"not read: {sorted(tensors)}"
    return definition, unflatten(leaves), golden


def states(definition: ModelDefinition, params: Any, golden: dict[str, np.ndarray], **options: Any) -> jax.Array:
    model = definition.bind(params)
    return model.reader(golden["tokens"], golden["mask"], query_segments_BL=np.ones_like(golden["tokens"]), **options)


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_block_matches_transformers(name: str) -> None:
    definition, params, golden = load(name)

    def run(params: Any) -> jax.Array:
        x_BLD = states(definition, params, golden)
        return definition.bind(params).predict_tokens(x_BLD).logits() if "logits" in golden else x_BLD

    expected = golden["logits" if "logits" in golden else "states"]
    found = np.asarray(tiny.jit(run)(params)) * golden["mask"][..., None]
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


CAUSAL = sorted(name for name, arch in SAID.items() if arch.causal)
APART = [pytest.param(name, True, marks=() if name == "gemma2" else pytest.mark.slow) for name in CAUSAL]


@pytest.mark.parametrize(("name", "apart"), [*((name, False) for name in CAUSAL), *APART])
def test_step_by_step_it_gives_the_same(name: str, apart: bool) -> None:
    """A prompt of 5 tokens at once and the others one by one, with a cache, against the row at once."""
    definition, params, golden = load(name)
    tokens_BL, prompt = golden["tokens"][:1], 5
    length = tokens_BL.shape[1]

    def run(params: Any) -> tuple[jax.Array, ...]:
        bound = decode.bind(definition, decode.unroll(definition, params) if apart else params)

        def extend(cache: decode.Cache, tokens_BL: jax.Array, first: Any) -> tuple[decode.Cache, jax.Array]:
            own_L = first + jnp.arange(tokens_BL.shape[1])
            distance_BLS = (own_L[:, None] - jnp.arange(length))[None]
            slots = decode.CacheSlots(jnp.int32(first), own_L[None], distance_BLS >= 0, distance_BLS)
            x_BLD, cache = decode.extend(bound, tokens_BL, cache, slots)
            return cache, decode.predict(bound, x_BLD)

        cache, first_BLV = extend(decode.empty(bound, 1, length), tokens_BL[:, :prompt], 0)
        others = (tokens_BL[0, prompt:, None, None], jnp.arange(prompt, length))
        _, other_LBV = jax.lax.scan(lambda cache, token: extend(cache, *token), cache, others)
        model = definition.bind(params)
        whole_BLV = model.predict_tokens(model.decoder(tokens_BL)).logits()
        return jnp.concatenate([first_BLV, other_LBV[:, 0].swapaxes(0, 1)], axis=1), whole_BLV

    found_BLV, whole_BLV = tiny.jit(run)(params)
    np.testing.assert_allclose(found_BLV, whole_BLV, atol=2e-5)


def test_the_router_is_returned_and_its_load_matches_transformers() -> None:
    definition, params, golden = load("mixtral")

    def run(params: Any) -> jax.Array:
        captured: list = []
        states(definition, params, golden, captured=captured)
        loads = [router_load(routing_BLE, 2, golden["mask"]) for routing_BLE in captured[0].routing]
        return load_balancing(sum(loads), 2.0 * golden["mask"].sum())

    assert float(tiny.jit(run)(params)) == pytest.approx(float(golden["load_balancing"]), rel=1e-5)


def test_chunks_match_llama_4() -> None:
    """Rows of 9 in chunks of 4, as make_goldens.py prints them of Llama 4's mask in transformers; packed documents count again from 0."""
    expected = """100000000 110000000 111000000 111100000 000010000 000011000 000011100 000011110 000000001""".split()
    segments = chunk_segments(jnp.ones((1, 9), int), jnp.arange(9)[None], 4)
    seen = np.asarray(attention_bias(segments, segments, causal=True))[0, 0] == 0
    assert ["".join(map(str, row)) for row in seen.astype(int)] == expected
    packed = np.array([[1] * 5 + [2] * 4 + [0]])
    segments = chunk_segments(jnp.asarray(packed), jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0]]), 4)
    seen = np.asarray(attention_bias(segments, segments, causal=True))[0, 0] == 0
    assert [int(row.sum()) for row in seen] == [1, 2, 3, 4, 1, 1, 2, 3, 4, 1]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(4, [0.25, 0.0625, 0.015625, 0.00390625]), (3, [0.0625, 0.00390625, 0.25])],  # 2^(-8 n / H); Press et al. 2022
)
def test_slopes_of_alibi(heads: int, expected: list[float]) -> None:
    assert alibi_slopes(heads).tolist() == expected


@pytest.mark.parametrize("gated", [True, False])
def test_rows_sorted_by_expert_give_the_same_as_all_experts(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped products, which accelerators run, against every expert on every position: outputs and gradients."""
    arch = from_flat(
        vocab_size=8,
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        intermediate_size=10,
        max_length=8,
        num_experts=5,
        experts_per_token=3,
        gated=gated,
        mlp_bias=False,
        shared_expert_size=6,
    )
    graph, state = nnx.split(Experts(arch, arch.layer_specs[0], nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), state)
    x_BLD, weights_BLD = rng.normal(size=(2, 3, 7, 12)).astype(np.float32)

    def value(params: Any) -> jax.Array:
        return (nnx.merge(graph, params)(jnp.asarray(x_BLD)) * weights_BLD).sum()

    expected = tiny.jit(jax.value_and_grad(value))(params)
    monkeypatch.setattr(feed_forward, "platform", lambda: "tpu")
    found = tiny.jit(jax.value_and_grad(lambda params: value(params)))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]))
