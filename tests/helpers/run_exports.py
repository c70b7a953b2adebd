"""Tokenizers of tiny runs as stored in their models' directories: every family with every kind of vocabulary."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.config import ModelConfig, TokenizerConfig
from lm_research.interop.native_checkpoint import describe, tokenizer_of, tokens_of
from lm_research.models.families import FAMILIES, define_model
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.tokenizer_training import LIBRARY_KINDS, train_tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / "training" / "goldens" / "run_exports.json"
# Name -> settings of its training; "_lines" keep line breaks.
VOCABULARIES = {
    "unigram": TokenizerConfig(type="unigram", vocab_size=320),
    "unigram_lines": TokenizerConfig(type="unigram", vocab_size=320, keep_newlines=True),
    "bpe": TokenizerConfig(type="bpe", vocab_size=420),
    "bpe_lines": TokenizerConfig(type="bpe", vocab_size=420, keep_newlines=True),
    "wordpiece": TokenizerConfig(type="wordpiece", vocab_size=110),
    "wordpiece_cased": TokenizerConfig(type="wordpiece", vocab_size=110, lowercase=False),
    "byte_bpe": TokenizerConfig(type="byte_bpe", vocab_size=330),
    "byte_bpe_lines": TokenizerConfig(type="byte_bpe", vocab_size=330, keep_newlines=True),
}
# Pre-training objectives of encoder-decoders, whose sources look different.
OBJECTIVES = {"t5": "span_corruption", "mt5": "span_corruption", "bart": "denoising", "mbart": "denoising"}
PAIRS = [(family, vocabulary) for family in sorted(FAMILIES) for vocabulary in VOCABULARIES]

TEXTS = [
    "",
    " ",
    "the river ran over the hill and the old king",
    "  The  King\tsaid:\n\n  “no”.\r\nAnd went   ",
    "a\u00a0no-break\u3000ideographic\u2003em\u200bzero\u2028line\u0085next\x0bvt\x0cff",
    "control \x00\x01\x07\x1b\x7f\u00ad\ufeffcharacters",
    "full-width ＡＢＣ１２３，！ ﬁne ½ ² ™ ㎏ ﷺ",
    "decomposed: cafe\u0301 e\u0302\u0301 u\u0323\u0302 a\u0316\u0301 ﬁ\u0301 Ａ\u0301 ê\u0301 q\u0301 \u0301alone",
    "ガ行 ハ\u309a カ\u3099 ｶﾞ 한국 \u1112\u1161\u11ab ㅎㅏㄴ",
    "日本語と漢字、中文。 ไทยน้ำ हिन्दी क\u093c",
    "العربيّة شَدَّة \u0651\u064e עִבְרִית ١٢٣",
    "👩\u200d👩\u200d👧\ufe0f 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪 ❤\ufe0f",
    "▁literal▁ lower one ▁eighth▁",
    "<0x41> <0xE2> <0x0A> [UNKNOWN] <unknown>",
    "named [SEP] and </s> in [MASK], <mask> text[PAD]<pad> [CLS]<s>[UNK]<unk>.",
    "<extra_id_0> the <extra_id_1>",
    "kingking kingdom's don't 3.14 1,000,000 a-b_c@d.e #x",
    "thé ÉTUDE İstanbul ẞ ǅ ΑΣ",
    "𝔘𝔫𝔦 𝒄𝒐𝒅𝒆 \U0001f9ff\U000e0001",
    "x\u0344y i\u031b\u0340 ᄀ\u1161가\u11a8",
]
SECONDS = ["", "the hill", "  and \n more ", "猫", "[SEP]"] * 4


def corpus() -> list[str]:
    """Sentences of a few words, English and others; the same ones each time."""
    draw = random.Random(0)
    words = (
        "the river ran over hill and old king said went no café 日本 한국 один 3 12 “yes” naïve kingdom, don't".split()
    )
    return [" ".join(draw.choices(words, k=12)) + ".\n  The  end" for _ in range(150)]


@functools.cache
def trained(vocabulary: str) -> Tokenizer:
    config = VOCABULARIES[vocabulary]
    config = dataclasses.replace(config, sentinels=2)
    if config.type in LIBRARY_KINDS:
        return train_tokenizer(corpus(), config)
    with tempfile.TemporaryDirectory() as folder:
        return SentencePieceTokenizer.train(corpus(), config, pathlib.Path(folder) / "tokenizer.model")


def exported(family: str, vocabulary: str) -> tuple[HFTokenizer, bytes]:
    """The output of a run of a family with such a vocabulary: its tokenizer and its config.json."""
    tokenizer = trained(vocabulary)
    definition = define_model(model_section(family), tokenizer.size)
    how = tokenizer, definition.arch, definition.head.name, OBJECTIVES.get(family, "")
    config = describe(definition, family, None, tokens_of(*how))["config"]
    return tokenizer_of(*how), json.dumps(config).encode()


def model_section(family: str) -> ModelConfig:
    sizes = dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=64, max_length=64)
    return ModelConfig(family=family, **sizes)


def digest_of(batches: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the ids and types of several batches of rows, in hexadecimal."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    rows = [{name: np.asarray(batch[name]).tolist() for name in names if name in batch} for batch in batches]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
