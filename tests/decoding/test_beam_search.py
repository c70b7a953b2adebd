"""Beams wide enough find the best of all texts; groups and forced words against plain searches over lists."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import toys
from helpers.toys import VOCAB, Exact
from lm_research.decoding import beam
from lm_research.decoding.generate import generate
from lm_research.pretrained import LanguageModel

PROMPT = [3, 1, 4]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toys.language_model()


@pytest.fixture(scope="module")
def exact(lm: LanguageModel) -> Exact:
    return Exact(lm)


def search(lm: LanguageModel, **arguments: object) -> tuple[list[list[int]], np.ndarray]:
    output = generate(lm, [PROMPT], return_dict_in_generate=True, **arguments)
    return output.new_tokens, output.sequences_scores


def test_wide_beams_find_the_best_of_all_texts(lm: LanguageModel, exact: Exact) -> None:
    texts, scores = search(lm, max_new_tokens=3, num_beams=64, num_return_sequences=10, length_penalty=1.0)
    best = sorted(toys.all_texts(3), key=lambda text: -exact.score(PROMPT, text))[:10]
    assert texts == [list(text) for text in best]
    np.testing.assert_allclose(scores, [exact.score(PROMPT, text) / 3 for text in best], rtol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_wide_beams_find_the_best_text_with_an_end(lm: LanguageModel, exact: Exact, penalty: float) -> None:
    end = 5
    texts, scores = search(
        lm, max_new_tokens=3, num_beams=64, length_penalty=penalty, eos_token_id=end, early_stopping="never"
    )
    ended = []
    for length in (1, 2, 3):
        for text in toys.all_texts(length):
            if end not in text[:-1] and (text[-1] == end or length == 3):
                ended.append(text)
    value = {text: exact.score(PROMPT, text) / len(text) ** penalty for text in ended}
    best = max(value, key=value.get)
    assert texts[0] == list(best)
    np.testing.assert_allclose(scores[0], value[best], rtol=1e-4)


def test_groups_avoid_each_others_tokens(lm: LanguageModel, exact: Exact) -> None:
    groups, size, steps, penalty = 3, 2, 4, 0.8
    running = [[([], 0.0)] for _ in range(groups)]
    for _ in range(steps):
        taken = np.zeros(VOCAB)
        for number, beams in enumerate(running):
            found = []
            for text, score in beams:
                log = exact.next(PROMPT + text) - penalty * taken
                found += [([*text, token], score + log[token]) for token in range(VOCAB)]
            running[number] = sorted(found, key=lambda pair: -pair[1])[:size]
            for text, _ in running[number]:
                taken[text[-1]] += 1
    expected = sorted((pair for beams in running for pair in beams), key=lambda pair: -pair[1])
    texts, scores = search(
        lm, max_new_tokens=steps, num_beams=6, num_beam_groups=3, diversity_penalty=penalty, num_return_sequences=6
    )
    assert texts == [text for text, _ in expected]
    np.testing.assert_allclose(scores, [score / steps for _, score in expected], rtol=1e-4)
    plain, _ = search(lm, max_new_tokens=steps, num_beams=6, num_return_sequences=6)
    assert texts != plain


def contains(text: list[int], word: list[int]) -> bool:
    return any(list(text[i : i + len(word)]) == word for i in range(len(text)))


WORDS = [[2], [6, 0]]


def test_wide_beams_find_the_best_text_with_the_words(lm: LanguageModel, exact: Exact) -> None:
    texts, scores = search(lm, max_new_tokens=4, num_beams=100, num_return_sequences=3, force_words_ids=WORDS)
    allowed = [text for text in toys.all_texts(4) if all(contains(list(text), word) for word in WORDS)]
    best = sorted(allowed, key=lambda text: -exact.score(PROMPT, text))[:3]
    assert texts == [list(text) for text in best]
    np.testing.assert_allclose(scores, [exact.score(PROMPT, text) / 4 for text in best], rtol=1e-4)
    free = max(toys.all_texts(4), key=functools.partial(exact.score, PROMPT))
    assert not all(contains(list(free), word) for word in WORDS)  # it had to go another way


@pytest.mark.parametrize("words", [[[2], [6, 0]], [[7, 7, 2]], [[1, 2], [2, 1]], [[4]]])
def test_few_beams_generate_the_words_too(lm: LanguageModel, words: list[list[int]]) -> None:
    texts, scores = search(
        lm, max_new_tokens=6, num_beams=4, num_return_sequences=2, force_words_ids=words, eos_token_id=5
    )
    for text in texts:
        assert all(contains(text, word) for word in words), text
    assert scores[0] >= scores[1] > -100


def test_rows_search_independently(lm: LanguageModel) -> None:
    """A batch of prompts of different lengths gives the same as each prompt alone."""
    prompts = [[3, 1, 4], [1], [5, 2, 6, 5, 3]]
    options = dict(max_new_tokens=5, num_beams=3, eos_token_id=2, num_return_sequences=2, no_repeat_ngram_size=2)
    together = generate(lm, prompts, return_dict_in_generate=True, **options)
    for number, prompt in enumerate(prompts):
        alone = generate(lm, [prompt], return_dict_in_generate=True, **options)
        assert together.new_tokens[2 * number : 2 * number + 2] == alone.new_tokens
        np.testing.assert_allclose(
            together.sequences_scores[2 * number : 2 * number + 2], alone.sequences_scores, rtol=1e-4
        )


def test_candidates_are_the_best_in_order() -> None:
    """Four of the six continuations of two beams; sampled ones are also ordered by their scores, not by their noise."""
    totals_BKV = jnp.array([[[-1.0, -5.0, -3.0], [-2.0, -4.0, -6.0]]])
    found = beam.top(totals_BKV, 4)
    assert found.scores_BC.tolist() == [[-1, -2, -3, -4]]
    assert (found.parent_BC.tolist(), found.token_BC.tolist()) == ([[0, 1, 0, 1]], [[0, 0, 2, 1]])
    keys_B = jax.random.split(jax.random.key(0), 32)
    drawn = beam.top(jnp.broadcast_to(totals_BKV, (32, 2, 3)), 4, keys_B)
    assert drawn.scores_BC.shape == (32, 4) and (np.diff(drawn.scores_BC, axis=1) < 0).all()
    assert (totals_BKV[0, drawn.parent_BC, drawn.token_BC] == drawn.scores_BC).all()
    assert not (drawn.scores_BC == found.scores_BC).all()


def test_drawn_beams_follow_the_seed(lm: LanguageModel) -> None:
    options = dict(max_new_tokens=4, num_beams=3, do_sample=True, num_return_sequences=3, temperature=2.0)
    first, again, other = (search(lm, seed=seed, **options)[0] for seed in (0, 0, 1))
    assert first == again != other
