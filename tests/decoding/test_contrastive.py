"""Contrastive search against its definition, run over whole texts without a cache."""

from __future__ import annotations

import itertools
import types
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from helpers import toys
from helpers.toys import Exact
from lm_research.decoding.contrastive import ContrastivePlan, _place
from lm_research.decoding.generate import generate


def reference(exact: Exact, prompt: list[int], steps: int, count: int, alpha: float) -> list[int]:
    """Su et al. 2022, equation 5."""
    text = list(prompt)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for _ in range(steps):
        share = np.exp(exact.next(text))
        past = unit(exact(text)[1])
        value = {}
        for token in np.argsort(-share)[:count]:
            state = unit(exact([*text, token])[1][-1])
            value[int(token)] = (1 - alpha) * share[token] - alpha * (past @ state).max()
        text.append(max(value, key=value.get))
    return text[len(prompt) :]


def test_tokens_follow_the_definition() -> None:
    lm = toys.language_model(vocab=20, layers={"attention": "window", "window": 3})  # distances count
    exact, prompts = Exact(lm), [[3, 1, 4, 1], [15], [9, 2, 6, 5, 3, 5]]
    output = generate(
        lm, prompts, max_new_tokens=8, penalty_alpha=0.6, top_k=5, return_dict_in_generate=True, eos_token_id=None
    )
    expected = [reference(exact, prompt, 8, 5, 0.6) for prompt in prompts]
    assert output.new_tokens == expected
    greedy = generate(lm, prompts, max_new_tokens=8)
    assert output.sequences.tolist() != greedy.tolist()
    ended = generate(
        lm,
        prompts,
        max_new_tokens=8,
        penalty_alpha=0.6,
        top_k=5,
        return_dict_in_generate=True,
        eos_token_id=expected[0][3],
    )
    assert ended.new_tokens[0] == expected[0][: expected[0].index(expected[0][3]) + 1]


def test_candidates_have_one_position_and_see_the_past_and_themselves() -> None:
    """Texts that end after slot 3 and begin in slots 0 and 2: three candidates in slots 4 to 6 are at distance 4 - s from slot s, and 0 from their own."""
    starts, past, plan = (0, 2), 4, ContrastivePlan(slots=6, candidates=3)
    place = _place(plan, types.SimpleNamespace(length=jnp.int32(past), start_R=jnp.array(starts)))
    assert int(place.slot) == past and place.positions_BL.tolist() == [[4, 4, 4], [2, 2, 2]]
    for row, candidate, slot in itertools.product(range(2), range(3), range(6 + 3)):
        own = slot == past + candidate
        assert place.visible_BLS[row, candidate, slot] == (own or starts[row] <= slot < past)
        if place.visible_BLS[row, candidate, slot]:
            assert place.distance_BLS[0, candidate, slot] == (0 if own else past - slot)


class LetterTokenizer(toys.ByteTokenizer):
    """Each byte is a character."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in ids if token < 256).decode("latin-1")


def test_stop_strings_end_a_row() -> None:
    """After the first token that completes one, in each row separately."""
    lm = toys.language_model(vocab=257, scale=0.3, tokenizer=LetterTokenizer())
    options = dict(max_new_tokens=10, penalty_alpha=0.6, top_k=5, return_dict_in_generate=True)
    free = generate(lm, prompts=["ab", "xyz"], **options)
    stop = free.texts[0][3:5]
    found = generate(lm, prompts=["ab", "xyz"], stop_strings=[stop], **options)
    for text, whole in zip(found.texts, free.texts, strict=True):
        assert text == (whole[: whole.index(stop) + 2] if stop in whole else whole)
    assert len(found.new_tokens[0]) <= 5 and found.sequences[0, -1] == 256  # padded to the longer row
