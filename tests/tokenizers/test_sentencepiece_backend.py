"""Sentencepiece models as tokenizers of the `tokenizers` library; every expected value comes from the sentencepiece library."""

from __future__ import annotations

import functools
import io
import random
import unicodedata
from typing import Any

import pytest
import sentencepiece

from lm_research.errors import TokenizerError
from lm_research.tokenizers.sentencepiece_backend import to_backend
from lm_research.tokenizers.sentencepiece_model import UNIGRAM, read_model
from lm_research.tokenizers.sentencepiece_rules import SPACE, normalizer_of
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

WORDS = "the river ran over hill and old king said went café 日本 한국 один 3 12 “yes” naïve <0 x4> ===== aaa".split()
# Variations of published models: rules, kinds, symbols.
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "bpe": dict(model_type="bpe"),
    "char": dict(model_type="char"),
    "unknown": dict(byte_fallback=False),
    "unknown_bpe": dict(model_type="bpe", byte_fallback=False),
    "nfkc": dict(normalization_rule_name="nfkc"),
    "folded": dict(normalization_rule_name="nmt_nfkc_cf"),
    "as_it_is": dict(normalization_rule_name="identity", remove_extra_whitespaces=False, model_type="bpe"),
    "no_prefix": dict(add_dummy_prefix=False),
    "symbols": dict(user_defined_symbols=["<tab>", "\n", "kin"]),
    "lines": dict(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n"],
    ),
}


@functools.cache
def trained(name: str) -> tuple[bytes, sentencepiece.SentencePieceProcessor]:
    draw, model = random.Random(0), io.BytesIO()
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(200)]
    options = {
        "model_type": "unigram",
        "byte_fallback": True,
        "vocab_size": 400,
        "hard_vocab_limit": False,
        **MODELS[name],
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=3, **options
    )
    return model.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def texts(count: int, seed: int) -> list[str]:
    """Strings of letters with marks, spaces of all kinds, scripts, words and what looks like tokens."""
    draw = random.Random(seed)
    everything = [chr(c) for c in range(1, 0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    marks = [c for c in everything if unicodedata.category(c) in ("Mn", "Mc", "Me")]
    spaces = list(" \t\n\r\u00a0\u3000\u2581\u200b\u200d\u2028\x85\x0c\x00\x01\x7f\xad\ufeff\u00b4")
    letters = list("aeiouAOkﬁＡêが\u1112\u1161\u11abㅎㅏㄴ한") + [chr(c) for c in range(0x300, 0x330)]
    words = [*WORDS, *(f" {word}" for word in WORDS), "<0x41>", "<0xE2>", "<tab>", "kin", "<s>", "<unk>"]
    pools = (everything, marks, spaces, letters, words, words, words)
    return ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(12))) for _ in range(count)]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("lines", "symbols")])
def test_normalized_texts_match_sentencepiece(name: str) -> None:
    """Decomposed accents, Korean letters, ligatures with marks, Arabic vowels in any order, control characters, spaces."""
    proto, reference = trained(name)
    normalizer = normalizer_of(read_model(proto), SPACE)
    for text in texts(1000, seed=1):
        assert normalizer.normalize_str(text) == reference.normalize(text), ascii(text)


@pytest.mark.parametrize("name", MODELS)
def test_ids_match_sentencepiece(name: str) -> None:
    """Except for ties in unigram models: two ways to divide a word into the same pieces, in another order."""
    proto, reference = trained(name)
    tokenizer = SentencePieceTokenizer(proto)
    backend = to_backend(proto, tokenizer.keeps_newlines, "model")
    backend.encode_special_tokens = True
    left_out = [
        "<s>",
        "<unk>",
        *[SPACE] * (name in ("nfkc", "symbols")),
    ]  # which keeps line breaks but folds spaces, as ours never do
    strings = [text for text in texts(1000, seed=2) if not any(one in text for one in left_out)]
    for text in strings:
        found, expected = backend.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
        if found != expected:
            assert sorted(found) == sorted(expected) and read_model(proto).kind == UNIGRAM, (
                ascii(text),
                found,
                expected,
            )
            continue
        known = [token for token in found if token != tokenizer.unk_id]
        assert backend.decode(known, skip_special_tokens=False) == tokenizer.decode(expected)
        if SPACE not in text:
            assert expected == reference.encode(text)


def test_a_model_of_words_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 3),
        model_writer=model,
        model_type="word",
        vocab_size=12,
        minloglevel=3,
    )
    with pytest.raises(TokenizerError, match="here: a sentencepiece model of type word"):
        to_backend(model.getvalue(), False, "here")
