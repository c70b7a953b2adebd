"""Layers with a window keep few slots, and generate what the model gives for whole texts, run without a cache.

Legend: B rows, S slots.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from test_contrastive import reference

from helpers import tiny
from helpers.toys import Exact
from lm_research.decoding.engine import Engine, encode_prompts
from lm_research.decoding.generate import generate
from lm_research.decoding.generation_request import engine_of
from lm_research.decoding.prompts import make_prompts
from lm_research.models import decode
from lm_research.models.architecture import from_flat
from lm_research.models.attention.cache import capacity
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec
from lm_research.pretrained import LanguageModel
from lm_research.serving.memory import cache_bytes
from lm_research.serving.slots import Slots

VOCAB, NEW = 20, 13
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [15], [9, 2, 6, 5], [8, 9, 7, 9, 3]]  # padded on the left to 16 slots
SMALL, WIDE = dict(attention="window", window=4), dict(attention="window", window=18)
ROTARY = dict(positions="rotary", norm_kind="rms", num_kv_heads=1)
PATTERNS: dict[str, tuple[tuple[dict, ...], dict[str, Any]]] = {
    "hybrid": ((SMALL, WIDE, {}), dict(num_layers=6, positions="relative", relative_buckets=8, relative_max_distance=16)),
    "mistral": ((dict(attention="window", window=5),), dict(ROTARY, num_layers=2)),
    "gemma": ((SMALL, {}), dict(ROTARY, num_layers=3, norm="sandwich", score_cap=2.0)),
    "chunks": ((dict(attention="chunked", window=6), dict(attention="window", window=1)), dict(ROTARY, num_layers=2)),
}  # fmt: skip


@functools.cache
def model(name: str, apart: bool = True, seed: int = 0) -> LanguageModel:
    pattern, changes = PATTERNS[name]
    sizes = dict(vocab_size=VOCAB, hidden_size=16, num_heads=2, intermediate_size=32, max_length=32, norm="pre")
    definition = define(from_flat(pattern, causal=True, **sizes | changes), HeadSpec("causal_lm", pooled=False))
    lm = LanguageModel(definition, tiny.random_params(definition, seed, 0.5), "gpt2", {})
    lm.engine = Engine(definition, lm.params, apart)
    return lm


@functools.cache
def exact(name: str) -> Exact:
    return Exact(model(name))


def greedy(name: str, prompt: list[int], count: int = NEW) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(exact(name).next(text).argmax()))
    return text[len(prompt) :]


def beams(name: str, prompt: list[int], size: int, steps: int) -> list[tuple[list[int], float]]:
    running: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(steps):
        found = []
        for text, score in running:
            log_V = exact(name).next(prompt + text)
            found += [([*text, token], score + log_V[token]) for token in range(VOCAB)]
        running = sorted(found, key=lambda pair: -pair[1])[:size]
    return running


@pytest.mark.parametrize(
    ("name", "apart"), [("hybrid", True), ("hybrid", False), ("mistral", True), ("gemma", False), ("chunks", True)]
)
def test_texts_match_the_model_without_a_cache(name: str, apart: bool) -> None:
    """Prompts shorter than a window, as long, and longer; texts longer than all windows; the log-probability of each token."""
    lm = model(name, apart)
    given = dict(max_new_tokens=NEW, output_logprobs=True, return_dict_in_generate=True)
    output = generate(lm, PROMPTS, **given)
    for prompt, tokens, log_L in zip(PROMPTS, output.new_tokens, output.logprobs, strict=True):
        assert tokens == greedy(name, prompt)
        expected = [exact(name).next(prompt + tokens[:n])[token] for n, token in enumerate(tokens)]
        np.testing.assert_allclose(log_L, expected, atol=2e-4)


@pytest.mark.parametrize(("name", "apart"), [("hybrid", True), ("gemma", False), ("chunks", True)])
def test_beams_match_a_search_without_a_cache(name: str, apart: bool) -> None:
    given = dict(max_new_tokens=9, num_beams=3, num_return_sequences=3, return_dict_in_generate=True)
    output = generate(model(name, apart), PROMPTS[:3], **given)
    expected = [pair for prompt in PROMPTS[:3] for pair in beams(name, prompt, 3, 9)]
    assert output.new_tokens == [text for text, _ in expected]
    np.testing.assert_allclose(output.sequences_scores, [score / 9 for _, score in expected], rtol=1e-4)


@pytest.mark.parametrize("apart", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_candidates_that_are_not_chosen_take_no_place_in_the_window(apart: bool) -> None:
    given = dict(max_new_tokens=NEW, penalty_alpha=0.6, top_k=3, return_dict_in_generate=True)
    output = generate(model("gemma", apart), PROMPTS, **given)
    assert output.new_tokens == [reference(exact("gemma"), prompt, NEW, 3, 0.6) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_rejected_drafted_tokens_overwrite_nothing_visible(apart: bool) -> None:
    given = dict(max_new_tokens=NEW, num_assistant_tokens=3, return_dict_in_generate=True)
    output = generate(model("hybrid", apart), PROMPTS, assistant_model=model("gemma", apart), **given)
    assert output.new_tokens == [greedy("hybrid", prompt) for prompt in PROMPTS]


def test_a_server_keeps_the_end_of_prompts_and_not_the_padding_after_them() -> None:
    """Rows join at different times, their prompts padded on the right to 16 slots; the pool holds what was counted for it."""
    lm = model("mistral")
    slots = Slots(engine_of(lm), 2, 32, {"ends_E": np.array([-1])})
    assert cache_bytes(lm.definition.arch, 2, 32) == sum(x.nbytes for x in jax.tree.leaves(tuple(slots.pool[:2])))
    for row in (0, 1):
        slots.join(row, PROMPTS[row], None, False)
        for _ in range(6):
            slots.step(list(range(row + 1)))
    for row, count in ((0, 12), (1, 6)):
        first = len(PROMPTS[row])
        assert slots.tokens_RS[row, first : first + count].tolist() == greedy("mistral", PROMPTS[row], count)


@pytest.mark.parametrize("apart", [True, False])
def test_arrays_are_no_longer_than_windows(apart: bool) -> None:
    """Windows of 4 and 18 and a whole layer, in rows of 500 slots; three beams, of a prompt of 16: 3 + 3 * 4 and 16 + 3 * 18."""
    engine = model("hybrid", apart).engine

    def lengths(step: int, shared: int) -> list[int]:
        def run(params: Any) -> decode.Cache:
            prompts = jax.tree.map(np.asarray, make_prompts(PROMPTS, 0))
            return encode_prompts(decode.bind(engine.definition, params), prompts, 500, step, shared)[1]

        cache = jax.eval_shape(run, engine.params)
        assert jax.tree.map(np.shape, cache.keys) == jax.tree.map(np.shape, cache.values)
        return [key.shape[-2] for key in jax.tree.leaves(cache.keys)]

    repeats = 2 if apart else 1  # looped, the period's three layers have an array each
    assert lengths(1, 0) == [4, 18, 500] * repeats
    assert lengths(5, 0) == [8, 22, 500] * repeats
    assert lengths(3, 16) == [15, 70, 500] * repeats


def test_short_texts_keep_no_more_slots_than_they_have() -> None:
    assert [capacity(4, slots, 1) for slots in (2, 4, 9)] == [2, 4, 4]
    assert capacity(0, 9, 1) == capacity(4, 9) == 9
    assert capacity(4, 16 + 3 * 2, step=3, shared=16) == 3 + 3 * 2
