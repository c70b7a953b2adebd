"""Frequencies of rotary positions against the published formulas in loops, and against transformers (rotary_goldens/make_goldens.py)."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.errors import PretrainedError
from lm_research.models.families import FAMILIES, model_types
from lm_research.models.limits import invalid_reason
from lm_research.models.rotary import make_rotation, rotary_frequencies, rotary_scale, rotate

FOLDER = pathlib.Path(__file__).parent / "rotary_goldens"
GOLDENS = json.loads((FOLDER / "rotary.json").read_text())
KEYS = json.loads((FOLDER / "keys.json").read_text())

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}


def test_llama3_stretches_long_waves() -> None:
    """As Meta's code for Llama 3.1: waves longer than 8192 / 1 by the factor, those under 8192 / 4 not, those between in part."""
    expected, kinds = [], set()
    for frequency in (500_000.0 ** (-2 * i / 128) for i in range(64)):
        wave = 2 * math.pi / frequency
        if wave < 8192 / 4:
            kinds.add("short")
        elif wave > 8192:
            kinds.add("long")
            frequency /= 8
        else:
            kinds.add("between")
            smooth = (8192 / wave - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        expected.append(frequency)
    assert len(kinds) == 3
    np.testing.assert_allclose(rotary_frequencies(128, 500_000.0, {"type": "llama3", **LLAMA3}), expected, rtol=1e-6)


def test_linear_scaling_divides_positions() -> None:
    plain = [10_000.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(rotary_frequencies(8, 10_000.0, {}), plain, rtol=1e-6)
    found = rotary_frequencies(8, 10_000.0, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(found, np.array(plain) / 4, rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations(interleaved: bool) -> None:
    """The pair (a, b) becomes (a cos t - b sin t, b cos t + a sin t) with t = position x frequency; a fifth element is kept."""
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 5))
    places, frequencies, expected = [[2, 700]], np.array([1.0, 0.01]), x.copy()
    for row, place in enumerate(places[0]):
        for head in range(3):
            for pair, frequency in enumerate(frequencies):
                i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 2)
                a, b, t = x[0, row, head, i], x[0, row, head, j], place * frequency
                expected[0, row, head, i] = a * math.cos(t) - b * math.sin(t)
                expected[0, row, head, j] = b * math.cos(t) + a * math.sin(t)
    frequencies = frequencies.astype(np.float32)
    found = rotate(jnp.asarray(x, jnp.float32), jnp.array(places), frequencies, interleaved)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    whole = rotate(jnp.asarray(x[..., :4], jnp.float32), jnp.array(places), frequencies, interleaved)
    np.testing.assert_allclose(whole, expected[..., :4], atol=1e-4)
    by_factors = make_rotation(jnp.array(places), frequencies, 5, interleaved=interleaved)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(by_factors, expected, atol=1e-4)
    low = rotate(jnp.asarray(x, jnp.bfloat16), jnp.array(places), frequencies, interleaved)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.03)  # the angles are not rounded


def spec_of(hf: dict[str, Any]) -> Any:
    """The first layer's, of a family that rotates a part of its heads."""
    arch = FAMILIES["phi"].from_hf({"partial_rotary_factor": 1.0, **hf}, set())
    assert not invalid_reason(arch)
    return arch.layer_specs[0]


@pytest.mark.parametrize("number", range(len(GOLDENS)))
def test_frequencies_and_factors_match_transformers(number: int) -> None:
    golden = GOLDENS[number]
    spec = spec_of(golden["hf"])
    scaling = dict(spec.rotary_scaling)
    assert spec.rotary_by_length == (scaling["type"] in ("dynamic", "longrope"))
    found = rotary_frequencies(spec.rotary_width, spec.rotary_theta, scaling, jnp.int32(golden["length"]))
    np.testing.assert_allclose(found, golden["frequencies"], rtol=2e-6)
    assert rotary_scale(scaling) == pytest.approx(golden["factor"], rel=1e-7)


@pytest.mark.parametrize("number", range(len(GOLDENS)))
def test_written_parameters_are_read_as_the_same(number: int) -> None:
    family, hf = FAMILIES["phi"], {"partial_rotary_factor": 1.0, **GOLDENS[number]["hf"]}
    arch = family.from_hf(hf, set())
    assert family.from_hf(json.loads(json.dumps(family.to_hf(arch))), set()).layers == arch.layers


@pytest.mark.parametrize(("kind", "keys", "layers"), KEYS["cases"])
def test_keys_are_those_that_transformers_reads(
    kind: str, keys: dict[str, Any], layers: dict[str, list[float]]
) -> None:
    family = FAMILIES[model_types()[kind]]
    arch = family.from_hf({"model_type": kind, **KEYS["sizes"], **keys}, set())
    again = family.from_hf(json.loads(json.dumps(family.to_hf(arch))), set())
    for one in (arch, again):
        assert len({spec.window for spec in one.layers}) == len(layers)
        for spec in one.layer_specs:
            expected = layers.get("") or layers["sliding_attention" if spec.window else "full_attention"]
            found = rotary_frequencies(spec.rotary_width, spec.rotary_theta, dict(spec.rotary_scaling))
            np.testing.assert_allclose(found, expected, rtol=2e-6)


YARN = dict(factor=4.0, original_max_position_embeddings=64)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dict(rope_theta=5e5), dict(rope_theta=5e5)),
        (
            dict(rope_theta=500, rope_scaling=dict(type="linear", factor=2)),
            dict(rope_theta=500, rope_type="linear", factor=2),
        ),
        (dict(rope_scaling=dict(rope_type="yarn", **YARN)), dict(rope_type="yarn", rope_theta=1e4, **YARN)),
        (
            dict(rope_scaling=dict(type="yarn", factor=4.0), original_max_position_embeddings=64),
            dict(rope_type="yarn", rope_theta=1e4, **YARN),
        ),
        (dict(partial_rotary_factor=0.5, rope_theta=3e3), dict(partial_rotary_factor=0.5, rope_theta=3e3)),
        (dict(rope_scaling=dict(type="dynamic", factor=2.0)), dict(rope_type="dynamic", factor=2.0)),
    ],
)
def test_old_spellings_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """RotaryEmbeddingConfigMixin of transformers 5.24 converts the former to the latter."""
    assert spec_of(old) == spec_of({"rope_parameters": new})


def test_parameters_may_be_given_by_kind_of_layer() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    full = dict(rope_type="yarn", rope_theta=1e6, factor=2.0, original_max_position_embeddings=32, truncate=False)
    rope = {"sliding_attention": dict(rope_type="default", rope_theta=50.0), "full_attention": full}
    hf = dict(num_hidden_layers=6, layer_types=kinds, use_sliding_window=True, sliding_window=8, rope_parameters=rope)
    family = FAMILIES["qwen2"]
    arch = family.from_hf(hf, set())
    assert [(spec.window, spec.rotary_theta) for spec in arch.layers] == [(8, 50.0), (8, 50.0), (0, 1e6)]
    # transformers 5.24 reads `truncate` of flat parameters only
    pairs = (("type", "yarn"), ("factor", 2.0), ("original_max_position_embeddings", 32.0))
    assert arch.layers[2].rotary_scaling == pairs
    assert family.from_hf(family.to_hf(arch), set()).layers == arch.layers


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (dict(rope_type="mrope"), "not supported"),
        (dict(rope_type="yarn", factor="4"), "factor"),
        (dict(rope_type="linear"), "requires factor"),
        (dict(rope_type="longrope", short_factor=[1.0] * 64), "requires long_factor"),
        (dict(rope_type="longrope", short_factor=[1.0] * 63, long_factor=[1.0] * 64), "63 numbers, but 64 pairs"),
        (dict(rope_type="longrope", short_factor=[1.0] * 64, long_factor=[0.0] * 64), "long_factor"),
        (dict(rope_type="yarn", factor=2.0, rope_theta=1.0), "rope_theta above 1"),
        (dict(rope_type="dynamic", factor=2.0, partial_rotary_factor=1 / 64), "more than one pair"),
        (dict(partial_rotary_factor=1.5), "rotary_fraction"),
    ],
)
def test_invalid_parameters_are_refused(rope: dict[str, Any], words: str) -> None:
    try:
        arch = FAMILIES["phi"].from_hf({"rope_parameters": rope, "head_dim": 128, "partial_rotary_factor": 1.0}, set())
        reason = invalid_reason(arch)
    except PretrainedError as error:
        reason = str(error)
    assert words in reason


def test_a_share_of_a_head_is_refused_where_heads_are_rotated_whole() -> None:
    """Llama in transformers 5.24 ignores it with rope_type default, and otherwise fails on the shapes."""
    hf = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5}
    with pytest.raises(PretrainedError, match="partial_rotary_factor is 0.5, but this family rotates whole heads"):
        FAMILIES["llama"].from_hf(hf, set())
