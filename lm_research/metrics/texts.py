"""How close written texts come to given ones: BLEU and chrF by sacrebleu, ROUGE by rouge-score, and exact match.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) go from 0 to 100 and are of the whole corpus, as sacrebleu has them (Post 2018).
ROUGE-1, -2, -L and -Lsum (Lin 2004) are mean F1 over records with Porter's stemmer, and go from 0 to 1, as does exact match.
ROUGE-Lsum takes each line for a sentence; a text of one line is divided into its sentences.

rouge-score's own tokens are runs of the letters a to z and digits: of a text in another script nothing is left. So there are others,
named by task.rouge_tokenizer:

    auto         rouge-score's in Latin script; words of letters in others (Cyrillic, Greek, Arabic, Korean, ...), without a stemmer; each
                 character of scripts that put no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan)
    character    each letter, digit and mark
    whitespace   what stands between white space: of texts that are divided into words beforehand
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
_LATIN = (*SCRIPTS["latin"], (0x300, 0x36F))  # with the accents that follow letters


def check_installed(bleu_tokenizer: str = "13a") -> None:
    """Raises a ConfigError if a package that these metrics need is missing."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"BLEU, chrF and ROUGE need the package{'s' * (len(missing) > 1)} {' and '.join(missing)}. Install them with "
            "`pip install 'lm_research[metrics]'`, or do without scores of written texts: --config.task.predict_with_generate=never."
        )
    try:
        _bleu(bleu_tokenizer)
    except (ImportError, RuntimeError) as error:
        extra = bleu_tokenizer.partition("-")[0]
        raise ConfigError(
            f"config.task.bleu_tokenizer={bleu_tokenizer} needs packages that are missing: `pip install 'sacrebleu[{extra}]'`. Or take "
            "another: char needs none."
        ) from error


def is_equal(prediction: str, reference: str) -> bool:
    """Whether a text is its reference but for white space at both ends."""
    return prediction.strip() == reference.strip()


def matches(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """`is_equal` of each [N]."""
    return np.array([is_equal(a, b) for a, b in zip(predictions, references, strict=True)], float)


@metric("exact_match", higher_is_better=True, kind="texts", prepare=matches, is_mean=True)
def exact_match(matches_N: np.ndarray) -> np.ndarray:
    return matches_N


@functools.cache
def _bleu(tokenizer: str = "13a") -> Any:
    """The BLEU of sacrebleu; without its warning that a text looks tokenized already."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, force=True)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def bleu_counts(predictions: Sequence[str], references: Sequence[str], bleu_tokenizer: str = "13a") -> np.ndarray:
    """What BLEU counts of each text [N, ...]; the sums of these are those of a corpus, so texts are compared once."""
    return np.array(_bleu(bleu_tokenizer)._extract_corpus_statistics(predictions, [references]))


@metric("bleu", higher_is_better=True, kind="texts", prepare=bleu_counts)
def bleu(counts_NK: np.ndarray) -> float:
    return _bleu()._compute_score_from_stats(counts_NK.sum(0).tolist()).score


def chrf_counts(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What chrF counts of each text."""
    return np.array(_chrf()._extract_corpus_statistics(predictions, [references]))


@metric("chrf", higher_is_better=True, kind="texts", prepare=chrf_counts)
def chrf(counts_NK: np.ndarray) -> float:
    return _chrf()._compute_score_from_stats(counts_NK.sum(0).tolist()).score


def rouge(predictions: Sequence[str], references: Sequence[str], rouge_tokenizer: str = "auto") -> np.ndarray:
    """F1 of each kind of ROUGE, for each record [N, 4]; the tokenizer is one of those above."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True, tokenizer=RougeTokenizer(rouge_tokenizer))
    pairs = zip(predictions, references, strict=True)
    found = (scorer.score(in_lines(reference), in_lines(prediction)) for prediction, reference in pairs)
    return np.array([[one[name].fmeasure for name in ROUGE] for one in found]).reshape(-1, len(ROUGE))


@metric("rouge1", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rouge1(rouge_N4: np.ndarray) -> np.ndarray:
    return rouge_N4[:, 0]


@metric("rouge2", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rouge2(rouge_N4: np.ndarray) -> np.ndarray:
    return rouge_N4[:, 1]


@metric("rougel", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rougel(rouge_N4: np.ndarray) -> np.ndarray:
    return rouge_N4[:, 2]


@metric("rougelsum", higher_is_better=True, kind="texts", prepare=rouge, is_mean=True)
def rougelsum(rouge_N4: np.ndarray) -> np.ndarray:
    return rouge_N4[:, 3]


class RougeTokenizer:
    """The tokens of a text that ROUGE counts, as rouge-score asks for them."""

    def __init__(self, name: str = "auto") -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.name, self.latin = name, DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        if self.name == "rouge_score":
            return self.latin.tokenize(text)
        text = text.lower()
        if self.name == "whitespace":
            return text.split()
        if self.name == "character":
            return [one for one in text if _is_part_of_word(one)]
        tokens: list[str] = []
        for kind, run in itertools.groupby(text, _kind):
            part = "".join(run)
            tokens += {"latin": self.latin.tokenize, "character": list, "word": lambda part: [part]}[kind](part)
        return tokens


@functools.cache
def _kind(character: str) -> str:
    """What becomes of a character's neighbors of its kind: a Latin text (with all that is part of no word), characters, a word."""
    if character.isascii() or not _is_part_of_word(character) or _in(character, _LATIN):
        return "latin"
    return "character" if any(_in(character, SCRIPTS[name]) for name in _UNSPACED) else "word"


def _is_part_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _in(character: str, blocks: Sequence[tuple[int, int]]) -> bool:
    return any(first <= ord(character) <= last for first, last in blocks)


def in_lines(text: str) -> str:
    """A text with a sentence on each line: its own lines if it has several."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_sentences(text))
