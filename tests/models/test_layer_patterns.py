"""Layers as a pattern: loops, the layout of parameters, which positions see which, and code that iterates over layers.

Legend: B batch, L length, D model width, N layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import LoraConfig, resolve
from lm_research.models import decode, layer_plan
from lm_research.models.adapters import adapt
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.flops import train_flops
from lm_research.models.heads import HeadSpec
from lm_research.models.layer_plan import Segment, segments, stacks
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import invalid_reason
from lm_research.training.optimizers.muon import matrix_axes
from lm_research.training.param_groups import make_groups
from lm_research.trees import flatten

SIZES = dict(vocab_size=tiny.VOCAB, hidden_size=16, num_heads=2, intermediate_size=32, max_length=16, num_layers=1)
WINDOW, WHOLE = dict(attention="window", window=4), {}
EXPERTS = dict(num_experts=4, experts_per_token=2)
FIRST = dict(attention_norm=False)
DISENTANGLED = dict(positions="disentangled", position_terms=("query", "key"))


def said(*pattern: dict, **changes: Any) -> Architecture:
    return from_flat(pattern or ({},), **SIZES | dict(norm="pre") | changes)


def model(arch: Architecture) -> ModelDefinition:
    return define(arch, HeadSpec("causal_lm" if arch.causal else "none", pooled=False))


@pytest.mark.parametrize(
    ("pattern", "depth", "expected"),
    [
        ("a", 12, [(0, 1, 12)]),
        ("aaaaab", 24, [(0, 6, 4)]),
        ("aaaaab", 26, [(0, 6, 4), (24, 1, 2)]),  # Gemma 3's smallest: two layers are left over
        ("xabbabbabbabbabbabbabba", 22, [(0, 1, 1), (1, 3, 7)]),  # as ModernBERT's, whose first differs
        ("aaaaaaabbbbb", 12, [(0, 1, 7), (7, 1, 5)]),  # Qwen 2: windows from a layer on
        ("ab", 1, [(0, 1, 1)]),
    ],
)
def test_layers_are_run_in_as_few_traced_ones_as_repetitions_allow(
    pattern: str, depth: int, expected: list[tuple[int, int, int]]
) -> None:
    kinds = {"a": WINDOW, "b": WHOLE, "x": dict(attention="window", window=6)}
    found = segments(said(*(kinds[letter] for letter in pattern), num_layers=depth))
    assert found == tuple(Segment(*one) for one in expected)


@pytest.mark.parametrize(("period", "count"), [(64, 1), (65, 130)])
def test_the_longest_period(period: int, count: int) -> None:
    """That is looked for has 64 layers."""
    kinds = [dict(attention="window", window=2 * number) for number in range(1, period + 1)]
    found = segments(said(*kinds, num_layers=2 * period))
    assert len(found) == count and (count > 1 or found == (Segment(0, 64, 2),))


@pytest.mark.parametrize(
    ("word", "value", "name"),
    [
        ("experts", 8, "experts_8"),
        ("experts", 0, "no_experts"),
        ("gated", True, "gated"),
        ("gated", False, "no_gated"),
        ("", "none", "no_attention"),
        ("", "full", "full"),
    ],
)
def test_words_of_stacks(word: str, value: object, name: str) -> None:
    assert layer_plan._word(word, value) == name


def test_names_of_stacks_have_as_few_words_as_tell_them_apart() -> None:
    one, two, three = LayerSpec(num_experts=4, gated=True), LayerSpec(), LayerSpec(gated=True)
    assert layer_plan._names([one, two]) == ["experts_4", "no_experts"]
    assert layer_plan._names([one, two, three]) == ["experts_4_gated", "no_experts_no_gated", "no_experts_gated"]
    assert layer_plan._names([one]) == [""]


def test_each_layer_has_a_row_of_a_stack() -> None:
    found = layer_plan.layer_slots(said(WHOLE, EXPERTS, num_layers=5))
    assert found == (("no_experts", 0), ("experts_4", 0), ("no_experts", 1), ("experts_4", 1), ("no_experts", 2))


@pytest.mark.parametrize(
    ("layers", "groups", "size", "blocks"),
    [(6, 2, 1, "000111"), (5, 2, 1, "00011"), (8, 2, 2, "01012323"), (3, 1, 1, "000"), (3, 3, 1, "012")],
)
def test_shared_layers(layers: int, groups: int, size: int, blocks: str) -> None:
    """As in ALBERT's released code, layer n has group int(n / (layers / groups)), whose blocks follow each other."""
    arch = said(num_layers=layers, share_layers=True, layer_groups=groups, group_size=size)
    assert layer_plan.layer_slots(arch) == tuple(("", int(block)) for block in blocks)
    (stack,) = stacks(arch)
    assert (stack.name, stack.layers) == ("", tuple(range(groups * size)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ((WINDOW, WINDOW, WHOLE), {"": (0, 1, 2, 3, 4)}),
        ((FIRST, *(WHOLE,) * 4), {"no_attention_norm": (0,), "attention_norm": (1, 2, 3, 4)}),
        ((WHOLE, EXPERTS), {"no_experts": (0, 2, 4), "experts_4": (1, 3)}),
        (
            (WHOLE, dict(head_size=16), dict(attention="none")),
            {"full_head_size_8": (0, 3), "full_head_size_16": (1, 4), "no_attention_head_size_8": (2,)},
        ),
    ],
)
def test_parameters_of_equal_layers_are_stacked(pattern: tuple, expected: dict) -> None:
    arch = said(*pattern, num_layers=5, causal=True)
    assert {stack.name: stack.layers for stack in stacks(arch)} == expected
    definition = model(arch)
    for path, leaf in flatten(definition.shapes).items():
        layers = definition.layers_of(path)
        assert (layers is None) == ("/layers/" not in path)
        assert layers is None or leaf.shape[0] == len(layers)
    names = {path.split("/")[2] for path in flatten(definition.shapes) if "/layers/" in path}
    assert names == set(expected) or "" in expected


DECODER = (dict(WINDOW, positions="rotary", query_key_norm="head"), dict(EXPERTS, mlp_bias=False, residual="sandwich"))
STACKS = {
    "decoder": said(*DECODER, num_layers=5, causal=True, positions="none"),
    "encoder": said(FIRST, *(WINDOW, WHOLE) * 3, num_layers=6),
    "depth": said(dict(mix_norm=True, attention_gate="gelu", inner_norm=True), num_layers=3, depth_weights=True),
    "disentangled": said(dict(DISENTANGLED, conv_width=3), *(DISENTANGLED,) * 3, num_layers=4, norm="post"),
    "parallel": said(dict(residual="parallel"), dict(attention="none", residual_scale=0.5), num_layers=4, causal=True),
}
TOKENS = np.random.default_rng(0).integers(5, tiny.VOCAB, (2, 12))
SEGMENTS = np.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * 12])


def value_and_gradient(arch: Architecture, params: Any) -> tuple[jax.Array, Any]:
    definition, weights = model(arch), np.random.default_rng(1).normal(size=(2, 12, 16))

    def value(params: Any) -> jax.Array:
        x_BLD = definition.bind(params).reader(TOKENS, SEGMENTS, dropout_key=jax.random.key(3))
        return (x_BLD * weights * (SEGMENTS > 0)[..., None]).sum()

    return tiny.jit(jax.value_and_grad(value))(params)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("parallel", "disentangled")]


@pytest.mark.parametrize("name", ["decoder", "encoder", "depth", *SLOW])
def test_loops_and_recomputation_change_nothing(name: str) -> None:
    """Loops over periods, with everything recomputed in the backward pass, against layers one after the other; with dropout."""
    arch = STACKS[name].replace(dropout_rate=0.1, attention_dropout_rate=0.1)
    params = tiny.random_params(model(arch))
    plain, gradient = value_and_gradient(arch.replace(scan_layers=False), params)
    value, found = value_and_gradient(arch.replace(remat="full"), params)
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    pairs = zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(found), strict=True)
    for (path, expected), got in pairs:
        largest = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, largest), err_msg=str(path))
        assert largest > 0 or "value" not in str(path)


def test_a_stack_returns_the_inputs_of_each_layer() -> None:
    """Of 5 layers, two with experts: 6 states, of which each layer's is the next one's input, 5 attentions, 2 routers."""
    definition = model(STACKS["decoder"])

    def run(params: Any) -> Any:
        captured: list = []
        x_BLD = definition.bind(params).decoder(TOKENS, SEGMENTS, captured=captured)
        return x_BLD, definition.bind(params).decoder(TOKENS, SEGMENTS), captured[0]

    x_BLD, plain_BLD, seen = tiny.jit(run)(tiny.random_params(definition))
    np.testing.assert_allclose(x_BLD, plain_BLD, atol=1e-5)
    assert [len(part) for part in seen] == [6, 5, 0, 2]
    inputs = np.stack(seen.hidden_states)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(inputs[:-1], inputs[1:], strict=True))
    near = np.tril(np.ones((12, 12))) * (np.arange(12)[:, None] - np.arange(12) < 4) > 0
    for number, probs in enumerate(
        seen.attentions
    ):  # the second row is one document; windows of 4 and full layers, in turn
        expected = near if number % 2 == 0 else np.tril(np.ones((12, 12))) > 0
        assert ((np.asarray(probs)[1, 0] > 0) == expected).all()
    np.testing.assert_allclose(np.asarray(seen.routing).sum(-1), 1.0, rtol=1e-5)


DISTANCE = np.arange(12)[:, None] - np.arange(12)
PACKED = SEGMENTS[0][:, None] == SEGMENTS[0]
PLACES = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])  # in their documents
SIGHTS = {
    "window": (dict(causal=True), WINDOW, (DISTANCE >= 0) & (DISTANCE < 4)),
    "window to both sides": (dict(), WINDOW, np.abs(DISTANCE) <= 2),
    "odd window to both sides": (dict(), dict(WINDOW, window=3), np.abs(DISTANCE) <= 1),
    "chunks": (
        dict(causal=True),
        dict(attention="chunked", window=3),
        (DISTANCE >= 0) & (PLACES[:, None] // 3 == PLACES // 3),
    ),
    "none": (dict(causal=True), dict(attention="none"), DISTANCE == 0),
    "experts": (dict(causal=True), dict(EXPERTS, mlp_bias=False), DISTANCE >= 0),
    "alibi": (dict(causal=True), dict(positions="alibi"), DISTANCE >= 0),
    "alibi to both sides": (dict(), dict(positions="alibi"), DISTANCE > -99),
    "caps": (dict(causal=True), dict(score_cap=1.0), DISTANCE >= 0),
    "disentangled": (dict(), DISENTANGLED, DISTANCE > -99),
    "convolution": (dict(), dict(attention="none", conv_width=3), (np.abs(DISTANCE) <= 1) & (SEGMENTS[0] > 0)),
}


@pytest.mark.parametrize("name", SIGHTS)
def test_influence_between_positions(name: str) -> None:
    """A position's state depends on those that its kind of layer lets it see, in its document, and on no others: by gradients."""
    changes, layer, expected = SIGHTS[name]
    definition = model(said(layer, positions="none", **changes))
    params = tiny.random_params(definition)
    stack = "decoder" if definition.arch.causal else "encoder"
    tokens = np.arange(5, 17)[None]

    def states(table: jax.Array) -> jax.Array:
        own = params | {stack: params[stack] | {"embeddings": {"tokens": table}}}
        return definition.bind(own).reader(tokens, SEGMENTS[:1], PLACES[None])[0]

    def influence(table: jax.Array) -> jax.Array:
        x_LD, pull = jax.vjp(states, table)
        probes = jnp.eye(12)[:, :, None] * jnp.cos(jnp.arange(x_LD.shape[1]))
        return jnp.abs(jax.vmap(lambda probe: pull(probe)[0])(probes)).sum(-1)[:, 5:17]

    found = np.asarray(tiny.jit(influence)(params[stack]["embeddings"]["tokens"]))
    assert ((found > 0) == (expected & PACKED)).all()


def test_kernels_follow_the_pattern() -> None:
    """Windows to both sides and full layers in turn, in kernels and plain: same values, same gradients."""
    arch = said(dict(WINDOW, window=3), WHOLE, num_layers=4)
    params = tiny.random_params(model(arch))
    plain, gradient = value_and_gradient(arch, params)
    value, found = value_and_gradient(arch.replace(attention_backend="flash"), params)
    assert float(value) == pytest.approx(float(plain), rel=1e-4)
    for expected, got in zip(jax.tree.leaves(gradient), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_chunks_are_unchanged_by_padding_before_the_text() -> None:
    """Two tokens of padding before a row that is read with a cache, or without: its states are those of the row by itself."""
    definition = model(said(dict(attention="chunked", window=3), num_layers=2, causal=True, positions="none"))
    row = np.arange(5, 13)[None]

    def run(params: Any) -> tuple[jax.Array, ...]:
        bound, own_L = decode.bind(definition, params), jnp.arange(10)
        visible = (own_L[:, None] >= own_L) & (own_L >= 2)
        slots = decode.CacheSlots(
            jnp.int32(0), jnp.maximum(own_L - 2, 0)[None], visible[None], (own_L[:, None] - own_L)[None]
        )
        padded = jnp.pad(jnp.asarray(row), [(0, 0), (2, 0)])
        x_BLD, _ = decode.extend(bound, padded, decode.empty(bound, 1, 10), slots)
        decoder, segments = definition.bind(params).decoder, jnp.minimum(own_L // 2, 1)[None]
        at_once_BLD = decoder(padded, segments, query_segments_BL=jnp.ones_like(segments))
        return x_BLD[:, 2:], at_once_BLD[:, 2:], decoder(row)

    *found, expected = tiny.jit(run)(tiny.random_params(definition))
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["looped", "apart"])
def test_a_decoder_with_a_pattern_reads_its_encoder_step_by_step(apart: bool) -> None:
    """Encoder and decoder each with their own kinds of layers: a prompt of 3 tokens and 5 single ones are the row of 8 at once."""
    encoder = said(FIRST, *(WINDOW, WHOLE) * 2, num_layers=5)
    chunks = dict(attention="chunked", window=3, positions="rotary")
    arch = said(chunks, dict(EXPERTS, mlp_bias=False), num_layers=5, causal=True, encoder=encoder, positions="none")
    definition = define(arch, HeadSpec("seq2seq_lm"))
    source, row, prompt = TOKENS[:1], np.arange(5, 13)[None], 3

    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        bound = decode.bind(definition, decode.unroll(definition, params) if apart else params)
        _, memory = bound.model.encode(source)

        def extend(cache: decode.Cache, tokens_BL: jax.Array, first: Any) -> tuple[decode.Cache, jax.Array]:
            own_L = first + jnp.arange(tokens_BL.shape[1])
            distance_BLS = (own_L[:, None] - jnp.arange(8))[None]
            slots = decode.CacheSlots(jnp.int32(first), own_L[None], distance_BLS >= 0, distance_BLS)
            x_BLD, cache = decode.extend(bound, tokens_BL, cache, slots)
            return cache, x_BLD

        cache, first_BLD = extend(decode.empty(bound, 1, 8, memory), row[:, :prompt], 0)
        others = (jnp.asarray(row[0, prompt:, None, None]), jnp.arange(prompt, 8))
        _, other_LBD = jax.lax.scan(lambda cache, token: extend(cache, *token), cache, others)
        whole_BLD = definition.bind(params).decoder(row, memory=memory)
        return jnp.concatenate([first_BLD, other_LBD[:, 0].swapaxes(0, 1)], axis=1), whole_BLD

    found, expected = tiny.jit(run)(tiny.random_params(definition))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_code_that_iterates_over_layers_uses_their_numbers() -> None:
    """Layers 0, 2, 4 are plain and 1, 3 have experts: with decay d layer n of 5 has the rate d^(5 - n), and layers/3 is the second expert's."""
    definition = model(said(WHOLE, dict(EXPERTS, mlp_bias=False), num_layers=5, causal=True))
    config = resolve({"optimizer": {"layer_decay": 0.5}, "train": {"freeze": "layers/3/"}})
    groups = make_groups(config, definition.shapes, definition.layers_of)
    up = "decoder/layers/{}/feed_forward/up/kernel"
    assert groups.rates[up.format("no_experts")].reshape(-1).tolist() == [0.5**5, 0.5**3, 0.5]
    expert_up = "decoder/layers/experts_4/feed_forward/expert_up/kernel"
    assert groups.rates[expert_up].reshape(-1).tolist() == [0.5**4, 0.5**2]
    assert groups.rates["decoder/embeddings/tokens"] == 0.5**6
    assert groups.masks[expert_up].reshape(-1).tolist() == [1, 0]
    assert up.format("no_experts") not in groups.masks and up.format("no_experts") not in groups.frozen
    # A matrix for each expert is one of its own: [N, E, D, F].
    axes = matrix_axes(expert_up, 4)
    assert (axes.reduction_axis, axes.output_axis) == ((2,), (3,))
    adapted = adapt(definition, LoraConfig(rank=2, target_modules="attention/query/"))
    shapes = flatten(adapted.shapes)
    assert {path: leaf.shape for path, leaf in shapes.items() if path.endswith("lora_a")} == {
        "decoder/layers/experts_4/attention/query/lora_a": (2, 16, 2),
        "decoder/layers/no_experts/attention/query/lora_a": (3, 16, 2),
    }


def test_flops_of_experts_are_of_those_that_a_position_takes() -> None:
    """By hand, width 16, inner 32: attention 4 x 16 x 16 a layer; two matrices, of 2 of 4 experts, and a router of 16 x 4."""
    plain, mixed = (
        train_flops(model(said(layer, causal=True)), 12, 12) for layer in (WHOLE, EXPERTS | {"mlp_bias": False})
    )
    assert plain.layers == 6 * 12 * (4 * 16 * 16 + 2 * 16 * 32)
    assert mixed.layers == 6 * 12 * (4 * 16 * 16 + 2 * 2 * 16 * 32 + 16 * 4)
    assert plain.attention == mixed.attention == 12 * 16 * 12 * 12


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (dict(attention="window"), "attention=window, but window=0"),
        (dict(attention="chunked", window=4), "chunked, which requires a causal stack"),
        (dict(num_kv_heads=3), "num_heads=2 and num_kv_heads=0 are incompatible"),
        (dict(positions="rotary", rotary_fraction=0.4), "but rotary positions rotate pairs"),
        (dict(num_experts=2, experts_per_token=3), "experts_per_token=3 is not from 1 to num_experts=2"),
        (dict(num_experts=2, experts_per_token=1), "experts have no biases"),
        (dict(score_cap=-1.0), "score_cap is -1.0"),
        (dict(residual="parallel", attention="none"), "parallel branches require attention"),
        (dict(residual="post", attention_norm=False), "requires attention_norm=True"),
        (dict(residual="output", attention_norm=False), "requires attention_norm=True"),
        (dict(shared_norm=True), "only parallel branches share a norm"),
        (dict(position_terms=("key",)), "but disentangled positions, and only these, have terms"),
        (dict(positions="disentangled"), "but disentangled positions, and only these, have terms"),
        (dict(DISENTANGLED, num_kv_heads=1), "must be equal for disentangled positions"),
        (dict(conv_width=4), "the width must be odd, and the groups divide hidden_size=16"),
        (dict(conv_width=3, conv_groups=3), "the width must be odd, and the groups divide hidden_size=16"),
    ],
)
def test_invalid_layers(layer: dict, words: str) -> None:
    assert words in invalid_reason(said(layer))
    assert not invalid_reason(said()) and "empty" in invalid_reason(dataclasses.replace(said(), layers=()))
