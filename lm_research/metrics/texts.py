"""Similarity of generated texts to references: BLEU and chrF (sacrebleu), ROUGE (rouge-score), and exact match.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are corpus scores from 0 to 100, as in sacrebleu (Post 2018). ROUGE-1, -2, -L and -Lsum
(Lin 2004) are mean F1 over examples with Porter's stemmer, from 0 to 1, as is exact match. ROUGE-Lsum treats each line as a sentence; a
text of one line is split into its sentences.

rouge-score's own tokens are runs of the letters a to z and digits, so texts in other scripts have none. task.rouge_tokenizer selects the
tokens:

    auto         rouge-score's for Latin script; for other scripts (Cyrillic, Greek, Arabic, Korean, ...) words of letters, without a
                 stemmer; single characters for scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan)
    character    each letter, digit and mark
    whitespace   words separated by white space, for texts that are already tokenized
    rouge_score  rouge-score's own
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_research.common.scripts import SCRIPTS
from lm_research.common.sentences import split_sentences
from lm_research.errors import ConfigError
from lm_research.metrics.base import metric

PACKAGES = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NAMES = ("bleu", "chrf", *(name.lower() for name in ROUGE), "exact_match")
_UNSPACED = ("han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar", "tibetan")  # scripts without spaces
_LATIN = (*SCRIPTS["latin"], (0x300, 0x36F))  # and combining accents


def check_installed(bleu_tokenizer: str = "13a") -> None:
    """Raise a ConfigError if a package that these metrics need is missing."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"BLEU, chrF and ROUGE need the package{'s' * (len(missing) > 1)} {' and '.join(missing)}. Install them with "
            "`pip install 'lm_research[metrics]'`, or skip the scores of generated texts with --config.task.predict_with_generate=never."
        )
    try:
        _bleu(bleu_tokenizer)
    except (ImportError, RuntimeError) as error:
        extra = bleu_tokenizer.partition("-")[0]
        raise ConfigError(
            f"config.task.bleu_tokenizer={bleu_tokenizer} needs packages that are missing. Install them with "
            f"`pip install 'sacrebleu[{extra}]'`, or choose another tokenizer, such as char, which needs none."
        ) from error


def is_equal(prediction: str, reference: str) -> bool:
    """Whether a text equals its reference, ignoring white space at both ends."""
    return prediction.strip() == reference.strip()


def matches(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return `is_equal` of each example [N]."""
    return np.array([is_equal(a, b) for a, b in zip(predictions, references, strict=True)], float)


@metric("exact_match", higher_is_better=True, kind="texts", prepare=matches, is_mean=True)
def exact_match(matches_N: np.ndarray) -> np.ndarray:
    """Whether each text equals its reference."""
    return matches_N


@functools.cache
def _bleu(tokenizer: str = "13a") -> Any:
    """Return sacrebleu's BLEU without its warning about tokenized text."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, force=True)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def bleu_counts(predictions: Sequence[str], references: Sequence[str], bleu_tokenizer: str = "13a") -> np.ndarray:
    """Return BLEU's sufficient statistics of each text [N, ...]; the statistics of a corpus are their sums."""
    return np.array(_bleu(bleu_tokenizer)._extract_corpus_statistics(predictions, [references]))


@metric("bleu", higher_is_better=True, kind="texts", prepare=bleu_counts)
def bleu(counts_NK: np.ndarray) -> float:
    """Corpus BLEU, from 0 to 100."""
    return _bleu()._compute_score_from_stats(counts_NK.sum(0).tolist()).score


def chrf_counts(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return chrF's sufficient statistics of each text [N, ...]; the statistics of a corpus are their sums."""
    return np.array(_chrf()._extract_corpus_statistics(predictions, [references]))


@metric("chrf", higher_is_better=True, kind="texts", prepare=chrf_counts)
def chrf(counts_NK: np.ndarray) -> float:
    """Corpus chrF, from 0 to 100."""
    return _chrf()._compute_score_from_stats(counts_NK.sum(0).tolist()).score


def rouge(predictions: Sequence[str], references: Sequence[str], rouge_tokenizer: str = "auto") -> np.ndarray:
    """Return [N, 4]: F1 of each variant in ROUGE for each example; the tokenizer is one of the module's list."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True, tokenizer=RougeTokenizer(rouge_tokenizer))
    pairs = zip(predictions, references, strict=True)
    found = (scorer.score(split_into_lines(reference), split_into_lines(prediction)) for prediction, reference in pairs)
    return np.array([[one[name].fmeasure for name in ROUGE] for one in found]).reshape(-1, len(ROUGE))


@metric("rouge1", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rouge1(rouge_N4: np.ndarray) -> np.ndarray:
    """ROUGE-1 (unigrams) of each example."""
    return rouge_N4[:, 0]


@metric("rouge2", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rouge2(rouge_N4: np.ndarray) -> np.ndarray:
    """ROUGE-2 (bigrams) of each example."""
    return rouge_N4[:, 1]


@metric("rougel", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rougel(rouge_N4: np.ndarray) -> np.ndarray:
    """ROUGE-L (longest common subsequence) of each example."""
    return rouge_N4[:, 2]


@metric("rougelsum", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rougelsum(rouge_N4: np.ndarray) -> np.ndarray:
    """ROUGE-Lsum (longest common subsequences of lines) of each example."""
    return rouge_N4[:, 3]


class RougeTokenizer:
    """A tokenizer for rouge-score, by a name of the module's list."""

    def __init__(self, name: str = "auto") -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.name, self.latin = name, DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Split a text into the tokens that ROUGE counts."""
        if self.name == "rouge_score":
            return self.latin.tokenize(text)
        text = text.lower()
        if self.name == "whitespace":
            return text.split()
        if self.name == "character":
            return [one for one in text if _is_part_of_word(one)]
        tokens: list[str] = []
        for kind, run in itertools.groupby(text, _script_kind):
            part = "".join(run)
            tokens += {"latin": self.latin.tokenize, "character": list, "word": lambda part: [part]}[kind](part)
        return tokens


@functools.cache
def _script_kind(character: str) -> str:
    """Classify a character: "latin" (including characters outside words), "character" (scripts without spaces) or "word"."""
    if character.isascii() or not _is_part_of_word(character) or _in(character, _LATIN):
        return "latin"
    return "character" if any(_in(character, SCRIPTS[name]) for name in _UNSPACED) else "word"


def _is_part_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _in(character: str, blocks: Sequence[tuple[int, int]]) -> bool:
    return any(first <= ord(character) <= last for first, last in blocks)


def split_into_lines(text: str) -> str:
    """Return a text with a sentence on each line: unchanged if it has several lines, otherwise split into sentences."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_sentences(text))
