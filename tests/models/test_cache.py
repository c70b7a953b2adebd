"""Decoding with a cache equals running the whole text without one, for every family, place and layout of parameters.

Legend: B rows, L length, S slots, V vocabulary.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from helpers.golden_models import Golden, golden_path, golden_paths, load_golden, write_checkpoint
from lm_research.decoding.engine import causal_slots
from lm_research.models import decode
from lm_research.models.attention.cache import capacity
from lm_research.models.decode import CacheSlots
from lm_research.models.families import family_of, name_of
from lm_research.pretrained import LanguageModel, from_pretrained

CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
FAST = ["gpt2_causal", "mistral_causal", "t5_generation"]
PROMPT, NEW, SPARE = 6, 5, 3
START = np.array([0, 3])  # the second row is padded on the left


def is_causal(golden: Golden) -> bool:
    config = json.loads(golden.config)
    return family_of(name_of(config)).from_hf(config, set(golden.weights)).causal


def decoders() -> list:
    """The golden models that predict the next token, of all families."""
    goldens = [load_golden(path) for path in golden_paths("outputs")]
    names = [golden.name for golden in goldens if golden.kind.endswith(CAUSAL) and is_causal(golden)]
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


def load(name: str, folder: pathlib.Path) -> tuple[LanguageModel, dict[str, np.ndarray]]:
    golden = load_golden(golden_path(name))
    write_checkpoint(folder, golden)
    lm = from_pretrained(folder)
    if lm.definition.arch.encoder is None:
        return lm, {}
    return lm, {name: golden.inputs[name][:2] for name in ("input_ids", "attention_mask")}


def step_by_step(lm: LanguageModel, tokens_BL: np.ndarray, source: dict[str, np.ndarray], apart: bool) -> np.ndarray:
    """Logits [B, L, V]: the first PROMPT tokens at once, the others one by one."""

    def start(params: Any) -> tuple:
        bound, memory = decode.bind(lm.definition, params), None
        if source:
            ones = jnp.ones_like(source["input_ids"])
            _, memory = bound.model.encode(source["input_ids"], source["attention_mask"], query_segments_BL=ones)
        cache = decode.empty(bound, len(tokens_BL), slots, memory, step=1)
        place = causal_slots(START, jnp.int32(0), PROMPT, PROMPT)
        x_BLD, cache = decode.extend(bound, tokens_BL[:, :PROMPT], cache, place)
        return decode.predict(bound, x_BLD), cache

    def step(params: Any, token_B1: jax.Array, cache: decode.Cache, slot: jax.Array) -> tuple:
        bound = decode.bind(lm.definition, params)
        x_B1D, cache = decode.extend(bound, token_B1, cache, causal_slots(START, slot, 1, slots))
        return decode.predict(bound, x_B1D), cache

    slots, start, step = tokens_BL.shape[1] + SPARE, tiny.jit(start), tiny.jit(step)
    params = tiny.jit(lambda p: decode.unroll(lm.definition, p))(lm.params) if apart else lm.params
    logits_BLV, cache = start(params)
    logits = [logits_BLV]
    for slot in range(PROMPT, tokens_BL.shape[1]):
        logits_B1V, cache = step(params, tokens_BL[:, slot : slot + 1], cache, np.int32(slot))
        logits.append(logits_B1V)
    return np.concatenate(logits, axis=1)


def whole(lm: LanguageModel, row: np.ndarray, source: dict[str, np.ndarray], number: int) -> np.ndarray:
    """Logits [L, V] of a single row, without padding and without a cache."""
    if source:
        inputs = {name: value[number : number + 1] for name, value in source.items()}
        return np.asarray(lm(**inputs, decoder_input_ids=row[None])["logits"])[0]
    return np.asarray(lm(input_ids=row[None])["logits"])[0]


@pytest.mark.parametrize("apart", [False, True], ids=["looped", "apart"])
@pytest.mark.parametrize("name", decoders())
def test_cached_equals_uncached(name: str, apart: bool, tmp_path: pathlib.Path) -> None:
    lm, source = load(name, tmp_path)
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(3, 50, (2, PROMPT + NEW)).astype(np.int32)
    tokens_BL[tokens_BL == lm.definition.arch.pad_id] = 50  # padding has no position in some families
    found_BLV = step_by_step(lm, tokens_BL, source, apart)
    for number, start in enumerate(START):
        expected_LV = whole(lm, tokens_BL[number, start:], source, number)
        assert np.abs(expected_LV).max() > 0.3
        np.testing.assert_allclose(found_BLV[number, start:], expected_LV, atol=1e-4)


def test_padding_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Other tokens before a row's start leave its logits unchanged, bit for bit."""
    lm, _ = load("mistral_causal", tmp_path)
    tokens_BL = np.random.default_rng(0).integers(3, 50, (2, PROMPT + NEW)).astype(np.int32)
    other_BL = tokens_BL.copy()
    other_BL[1, :3] = [7, 50, 8]
    first, second = (step_by_step(lm, tokens, {}, False) for tokens in (tokens_BL, other_BL))
    assert np.array_equal(first[1, 3:], second[1, 3:]) and not np.array_equal(first[1, :3], second[1, :3])


@pytest.mark.parametrize("name", ["llama_causal", "mistral_causal"])
def test_tokens_at_one_place_are_alternatives(name: str, tmp_path: pathlib.Path) -> None:
    """Three tokens at one place, each of which sees the prompt and itself, as beams and candidates do."""
    lm, _ = load(name, tmp_path)
    prompt_L, tried = np.array([5, 9, 30, 41, 8, 17], np.int32), np.array([4, 22, 50], np.int32)
    slots = PROMPT + len(tried)

    def run(params: Any) -> jax.Array:
        bound = decode.bind(lm.definition, params)
        cache, start_B = decode.empty(bound, 1, slots), jnp.zeros(1, jnp.int32)
        _, cache = decode.extend(bound, prompt_L[None], cache, causal_slots(start_B, jnp.int32(0), PROMPT, PROMPT))
        slot_S = jnp.arange(slots)
        visible_BLS = (slot_S < PROMPT) | (slot_S == PROMPT + jnp.arange(3)[:, None])
        distance = jnp.broadcast_to(jnp.maximum(PROMPT - slot_S, 0), (1, 3, slots))
        place = CacheSlots(jnp.int32(PROMPT), jnp.full((1, 3), PROMPT), visible_BLS[None], distance)
        x_BLD, _ = decode.extend(bound, tried[None], cache, place)
        return decode.predict(bound, x_BLD)

    found_LV = np.asarray(tiny.jit(run)(lm.params))[0]
    for number, token in enumerate(tried):
        expected_LV = whole(lm, np.append(prompt_L, token), {}, 0)
        np.testing.assert_allclose(found_LV[number], expected_LV[-1], atol=1e-4)


def test_rows_may_write_to_separate_slots(tmp_path: pathlib.Path) -> None:
    slots_BGSK = jnp.zeros((2, 1, 5, 2))
    new_BGLK = jnp.arange(8.0).reshape(2, 1, 2, 2) + 1
    found = decode.write(slots_BGSK, new_BGLK, jnp.array([0, 3]))
    assert found[0, 0, :, 0].tolist() == [1, 3, 0, 0, 0]
    assert found[1, 0, :, 0].tolist() == [0, 0, 0, 5, 7]
    same = decode.write(slots_BGSK, new_BGLK, jnp.int32(1))
    assert same[0, 0, :, 0].tolist() == [0, 1, 3, 0, 0] and same[1, 0, :, 0].tolist() == [0, 5, 7, 0, 0]


def test_entries_of_a_layer_with_a_window() -> None:
    """Slot s is in entry s mod C; beams have a ring for the two latest prompt slots, and one for three steps of two slots."""
    assert [capacity(0, 10, 1), capacity(3, 10), capacity(3, 10, 1), capacity(3, 10, 2), capacity(3, 2, 1)] == [
        10,
        10,
        3,
        4,
        2,
    ]
    assert [capacity(3, 12, 2, shared=4), capacity(3, 6, 2, shared=4), capacity(3, 12, 2, shared=1)] == [8, 4, 7]

    def entries(slot: int, new: int, slots: int, size: int, shared: int = 0) -> tuple[list[int], list[int]]:
        shape = (3, new)
        place = CacheSlots(
            jnp.int32(slot), jnp.zeros(shape), jnp.ones((*shape, slots)), jnp.zeros((*shape, slots)), shared
        )
        return place.new_entries(3, size).tolist(), place.slot_of_entry(3, size)[0].tolist()

    assert entries(5, 1, slots=10, size=3) == ([2], [3, 4, 5])
    assert entries(6, 1, slots=10, size=3) == ([0], [6, 4, 5])
    assert entries(5, 2, slots=10, size=4) == ([1, 2], [4, 5, 6, 3])
    assert entries(1, 1, slots=10, size=4) == ([1], [0, 1, -1, -1])
    assert entries(4, 2, slots=12, size=8, shared=4) == ([2, 3], [2, 3, 4, 5, -1, -1, -1, -1])
    assert entries(10, 2, slots=12, size=8, shared=4) == ([2, 3], [2, 3, 10, 11, 6, 7, 8, 9])
