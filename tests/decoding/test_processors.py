"""Each rule against loops over lists, on a vocabulary of eight tokens and rows of different lengths.

Legend: R rows, S slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.decoding import constrained, logits_processors
from lm_research.decoding.logits_processors import History

VOCAB, PROMPT, SLOTS = 8, 6, 12
NEVER = -np.inf
Row = Sequence[int]


def draw(seed: int, new: int = 3, encoder: bool = True) -> tuple[np.ndarray, History, list[list[int]], list[list[int]]]:
    """Scores [R, V], a history, and for each row all its tokens and those of the encoder, or of the prompt without one."""
    rng = np.random.default_rng(seed)
    rows = 16
    tokens_RS = rng.integers(0, VOCAB, (rows, SLOTS))
    start_R = rng.integers(0, PROMPT, rows)
    length = PROMPT + new
    source_RM = rng.integers(0, VOCAB, (rows, 7))
    source_RM[:, 5:] = logits_processors.NO_TOKEN
    history = History(
        jnp.asarray(tokens_RS),
        jnp.asarray(start_R),
        jnp.full(rows, length),
        jnp.full(rows, new),
        jnp.asarray(source_RM) if encoder else None,
    )
    scores_RV = rng.normal(size=(rows, VOCAB)).astype(np.float32)
    said = [tokens_RS[row, start_R[row] : length].tolist() for row in range(rows)]
    read = [row[:5].tolist() for row in source_RM] if encoder else [row[: len(row) - new] for row in said]
    return scores_RV, history, said, read


def check(
    name: str,
    setting: object,
    expected: Callable[[np.ndarray, Row, Row], None],
    new: int = 3,
    encoder: bool = True,
) -> int:
    """Compare a rule with `expected`, which changes a row's scores in place; return how many scores it changed."""
    changed = 0
    rule = tiny.jit(logits_processors.RULES[name])
    for seed in range(4):
        scores_RV, history, said, sources = draw(seed, new, encoder)
        wanted_RV = scores_RV.copy()
        for row, tokens, source in zip(wanted_RV, said, sources, strict=True):
            expected(row, tokens, source)
        np.testing.assert_allclose(rule(scores_RV, history, setting), wanted_RV, rtol=1e-6)
        changed += (wanted_RV != scores_RV).sum()
    return changed


@pytest.mark.parametrize("penalty", [0.5, 1.8])
def test_repetition_penalty(penalty: float) -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in set(said):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty

    assert check("repetition_penalty", np.float32(penalty), expected) > 50


@pytest.mark.parametrize("encoder", [True, False])
def test_encoder_repetition_penalty_prefers_what_the_encoder_read(encoder: bool) -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in set(source):
            scores[token] = scores[token] / 1.8 if scores[token] < 0 else scores[token] * 1.8

    assert check("encoder_repetition_penalty", np.float32(1.8), expected, encoder=encoder) > 50


def test_presence_and_frequency_count_new_tokens_only() -> None:
    def presence(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in set(said[-3:]):
            scores[token] -= np.float32(0.7)

    def frequency(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in said[-3:]:
            scores[token] -= np.float32(0.7)

    assert check("presence_penalty", np.float32(0.7), presence) > 50
    assert check("frequency_penalty", np.float32(0.7), frequency) > 50


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(size: int) -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in range(VOCAB):
            text = [*said, token]
            ngrams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
            if ngrams and ngrams[-1] in ngrams[:-1]:
                scores[token] = NEVER

    assert check("no_repeat_ngram", np.int32(size), expected) > 3
    if size == 2:  # a row that has just begun has no n-gram yet
        check("no_repeat_ngram", np.int32(size), expected, new=0)


@pytest.mark.parametrize(("size", "encoder"), [(1, True), (2, True), (2, False)])
def test_no_ngram_of_the_encoder_is_generated(size: int, encoder: bool) -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        for token in range(VOCAB):
            last = [*said, token][-size:]
            if any(list(source[i : i + size]) == last for i in range(len(source) - size + 1)):
                scores[token] = NEVER

    assert check("encoder_no_repeat_ngram", np.int32(size), expected, encoder=encoder) > 5


def test_sequences_longer_than_the_text_do_not_match() -> None:
    """With 12 slots; nothing loops up to the requested size."""
    scores_RV, history, *_ = draw(0)
    for size in (SLOTS + 2, 2**31 - 1):
        found = logits_processors.no_repeat_ngram(jnp.asarray(scores_RV), history, jnp.int32(size))
        assert (np.asarray(found) == scores_RV).all()


def test_no_program_grows_with_a_word() -> None:
    """The same number of operations for words of 64 tokens as of 4, and for 16 of them as for one."""
    scores_RV, history, *_ = draw(0)

    def operations(function: Callable[..., object], *arrays: object) -> int:
        return str(jax.make_jaxpr(function)(*arrays)).count("=")

    counts = set()
    for number, length in ((1, 4), (16, 4), (1, 64), (16, 64)):
        words = [[3] * length] * number
        ban = operations(
            logits_processors.bad_words, jnp.asarray(scores_RV), history, logits_processors.pack_words(words)
        )
        counts.add((ban, operations(constrained.progress, history, constrained.words_table(words))))
    assert len(counts) == 1


def test_tables_of_words_have_few_shapes() -> None:
    """16, 32, ... 1,024 words of 4, 8, ... 64 tokens."""
    shapes = {
        logits_processors.pack_words([[1] * longest] * number).shape
        for number in range(1, 1025, 3)
        for longest in (1, 4, 5, 64)
    }
    assert shapes == {(16 << n, t) for n in range(7) for t in (4, 8, 64)}


def test_bad_words_and_biases_of_words() -> None:
    words, biases = [[3], [1, 2], [5, 5], [0, 1, 2]], [0.5, -1.0, 2.0, -4.0]

    def bad(scores: np.ndarray, said: Row, source: Row) -> None:
        for word in words:
            if list(said[len(said) - len(word) + 1 :])[: len(word) - 1] == word[:-1]:
                scores[word[-1]] = NEVER

    def biased(scores: np.ndarray, said: Row, source: Row) -> None:
        for word, bias in zip(words, biases, strict=True):
            if list(said[len(said) - len(word) + 1 :])[: len(word) - 1] == word[:-1]:
                scores[word[-1]] += np.float32(bias)

    assert check("bad_words", logits_processors.pack_words(words), bad) > 64  # more than the single token
    setting = {"words_WT": logits_processors.pack_words(words), "bias_W": np.asarray(biases, np.float32)}
    assert check("sequence_bias", setting, biased) > 64


def test_ends_forced_and_suppressed_tokens() -> None:
    ends_E = np.array([2, 5], np.int32)

    def no_ends(scores: np.ndarray, said: Row, source: Row) -> None:
        scores[[2, 5]] = NEVER

    def only_ends(scores: np.ndarray, said: Row, source: Row) -> None:
        scores[:] = NEVER
        scores[[2, 5]] = 0.0

    def nothing(scores: np.ndarray, said: Row, source: Row) -> None:
        pass

    check("min_new_tokens", {"count": np.int32(4), "ends_E": ends_E}, no_ends)
    check("min_new_tokens", {"count": np.int32(3), "ends_E": ends_E}, nothing)
    for name in ("forced_bos", "forced_eos"):
        check(name, {"tokens_T": ends_E, "at": np.int32(3)}, only_ends)
        check(name, {"tokens_T": ends_E, "at": np.int32(2)}, nothing)
    check("suppress_tokens", ends_E, no_ends)
    check("begin_suppress_tokens", {"tokens_T": ends_E, "at": np.int32(0)}, no_ends, new=0)
    check("begin_suppress_tokens", {"tokens_T": ends_E, "at": np.int32(0)}, nothing, new=1)


def test_ends_get_likelier_with_length() -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        scores[4] += abs(scores[4]) * (1.5**2 - 1)  # two tokens beyond the first

    setting = {"start": np.int32(1), "factor": np.float32(1.5), "ends_E": np.array([4], np.int32)}
    assert check("length_decay", setting, expected) == 64
    assert check("length_decay", setting | {"start": np.int32(3)}, lambda *_: None) == 0


def test_ids_without_a_token_are_never_generated() -> None:
    def expected(scores: np.ndarray, said: Row, source: Row) -> None:
        scores[6:] = NEVER

    check("vocabulary", np.int32(6), expected)


def test_rules_are_applied_in_order() -> None:
    """The penalty sees scores before a ban, and a forced token wins over the ban of it."""
    scores_RV, history, *_ = draw(0)
    forced = {"tokens_T": np.array([3], np.int32), "at": np.int32(3)}
    settings = {
        "forced_eos": forced,
        "bad_words": logits_processors.pack_words([[3]]),
        "repetition_penalty": np.float32(2.0),
    }
    found_RV = np.asarray(logits_processors.apply(scores_RV, history, settings))
    assert (found_RV[:, 3] == 0).all() and np.isneginf(np.delete(found_RV, 3, axis=1)).all()
    assert list(logits_processors.RULES).index("repetition_penalty") < list(logits_processors.RULES).index("bad_words")
