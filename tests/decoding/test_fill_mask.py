"""Which gaps are shown, and that the predictions are the model's.

Legend: B rows, L length, M gaps a row, V vocabulary.
"""

from __future__ import annotations

import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import tiny
from lm_research.config import TokenizerConfig
from lm_research.data.store import write_store
from lm_research.decoding.fill_mask import Gap, MaskFiller, find_gaps
from lm_research.models.heads import Projection
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


class SuccessorModel:
    """Where a token is missing it expects the one after its left neighbor; second best the one before its right."""

    def __init__(self, params: Any) -> None:
        self.table_VD = params

    def reader(self, tokens_BL: jax.Array, segments_BL: jax.Array) -> jax.Array:
        left = jax.nn.one_hot(jnp.roll(tokens_BL, 1, 1) + 1, tiny.VOCAB)
        right = jax.nn.one_hot(jnp.roll(tokens_BL, -1, 1) - 1, tiny.VOCAB)
        row_ends = segments_BL.sum(1)[:, None, None]  # so that a wrong segment shows in the probabilities
        return (jnp.log(9.0) * left + jnp.log(3.0) * right) * (row_ends == 10)

    def predict_tokens(self, x_BLD: jax.Array, positions_BM: jax.Array) -> Projection:
        return Projection(jnp.take_along_axis(x_BLD, positions_BM[..., None], 1), self.table_VD, None)


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    return MaskFiller(types.SimpleNamespace(bind=SuccessorModel), tiny.WordTokenizer(), length=16, best=2)


def test_guesses_are_the_models_with_their_probabilities(filler: MaskFiller) -> None:
    tokens = [10, 11, 12, 40, 22, 23, 24, 25]  # eight words, [CLS] and [SEP]: rows of 10
    lines = filler(np.eye(tiny.VOCAB, dtype=np.float32), [Gap(tokens, 3), Gap(tokens, 6)])
    # exp: 9 for one word, 3 for another, 1 for the other 62: 9 / 74 = 12%, 3 / 74 = 4%.
    assert lines[0].split("\n")[0] == "w10 w11 w12 [w40] w22 w23 w24 w25"
    assert lines[0].split("->")[1].split() == ["w13", "12%", "w21", "4%"]
    # Both sides agree on w24: exp(log 9 + log 3) = 27 of 27 + 63.
    assert lines[1].split("\n")[0] == "w10 w11 w12 w40 w22 w23 [w24] w25"
    assert lines[1].split("->")[1].split()[:2] == ["w24", "30%"]


def test_without_gaps_there_are_no_lines(filler: MaskFiller) -> None:
    assert filler(None, []) == []


def test_rows_past_the_tokenizer_are_never_guessed() -> None:
    """The embedding table may have more rows than there are tokens; those have no name."""
    tokenizer = tiny.WordTokenizer(20)
    fill = MaskFiller(types.SimpleNamespace(bind=SuccessorModel), tokenizer, length=16, best=2)
    line = fill(np.eye(tiny.VOCAB, dtype=np.float32), [Gap([10, 11, 19, 12, 15, 10, 11, 12], 3)])[0]
    assert "w20" not in line and line.split("->")[1].split()[0] == "w14"


def test_a_trained_model_fills_the_gaps_it_has_learned() -> None:
    """A real model trained on one sentence predicts each of its words when that word is hidden."""
    definition, sentence = tiny.model("bert"), [7, 21, 9, 33, 12, 50, 14, 28]
    rows_BL = np.tile([2, *sentence, 3, 0, 0, 0, 0, 0, 0], (8, 1))
    segments_BL, places_BM = (rows_BL > 0).astype(int), np.arange(1, 9)[:, None]
    np.put_along_axis(rows_BL, places_BM, 4, 1)
    adam = optax.adam(0.02)

    def loss(params: Any) -> jax.Array:
        model = definition.bind(params)
        logits = model.predict_tokens(model.reader(rows_BL, segments_BL), places_BM).logits()[:, 0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.array(sentence)).mean()

    def learn(_: int, carry: tuple) -> tuple:
        params, state = carry
        update, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, update), state

    @tiny.jit
    def train(params: Any) -> Any:
        return jax.lax.fori_loop(0, 200, learn, (params, adam.init(params)))[0]

    params = train(tiny.random_params(definition, scale=0.1))
    fill = MaskFiller(definition, tiny.WordTokenizer(), length=16, best=1)
    for position, line in enumerate(fill(params, [Gap(sentence, position) for position in range(8)])):
        assert line.split("->")[1].split()[0] == f"w{sentence[position]}", line


def test_gaps_are_whole_words_in_the_middle_of_readable_sentences(tmp_path: pathlib.Path) -> None:
    tokenizer = tiny.WordTokenizer()
    tokenizer.starts_word = tokenizer.starts_word.copy()
    tokenizer.starts_word[40:] = False  # w40 and above continue a word
    rng = np.random.default_rng(0)
    texts = [[rng.integers(5, tiny.VOCAB, n).tolist() for n in rng.integers(2, 20, 8)] for _ in range(20)]
    store = tiny.store(tmp_path, texts)
    gaps = find_gaps(store, tokenizer, 6, length=16)
    assert len(gaps) == 6 and len({tuple(gap.tokens) for gap in gaps}) == 6
    sentences = [sentence for document in texts for sentence in document]
    for gap in gaps:
        assert len(gap.tokens) >= 8
        assert any(sentence[:14] == gap.tokens for sentence in sentences)
        whole = [i for i in range(len(gap.tokens) - 1) if gap.tokens[i] < 40 and gap.tokens[i + 1] < 40]
        assert gap.position in whole
        assert abs(gap.position - len(gap.tokens) // 2) == min(abs(i - len(gap.tokens) // 2) for i in whole)


def test_short_words_and_short_sentences_have_no_gap(tmp_path: pathlib.Path) -> None:
    tokenizer = tiny.WordTokenizer()
    short = tiny.store(tmp_path / "short", [[[5, 6, 7], [8, 9]]])
    assert find_gaps(short, tokenizer, 3, length=16) == []
    store = tiny.store(tmp_path / "long", [[list(range(5, 15))]])
    assert find_gaps(store, tokenizer, 1, length=16)[0].tokens == list(range(5, 15))
    assert find_gaps(store, tokenizer, 0, length=16) == []
    tokenizer.token_bytes = np.full(tiny.VOCAB, 3)  # a space and two letters
    assert find_gaps(store, tokenizer, 1, length=16) == []


def test_text_without_spaces_has_gaps_too(tmp_path: pathlib.Path) -> None:
    """Chinese has no marked words: a token of two characters counts as a word, and punctuation does not."""
    sentence = "天下大势，分久必合，合久必分。周末七国分争，并入于秦。"
    texts = [sentence, "天下大势。", "周末分争", "七国分争", "并入于秦"] * 9
    tokenizer = SentencePieceTokenizer.train(
        texts, TokenizerConfig(type="bpe", vocab_size=295), tmp_path / "tokenizer.model"
    )
    ids = tokenizer.encode(sentence)
    store = write_store(tmp_path / "store", [[ids]], tokenizer.digest, tokenizer.size)

    (gap,) = find_gaps(store, tokenizer, 1, 64)

    hidden = tokenizer.decode([gap.tokens[gap.position]]).strip()
    assert len(hidden) > 1 and hidden in sentence and not set(hidden) & set("，。")
