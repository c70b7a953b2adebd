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

from lm_research.data.cleaning.scripts import SCRIPTS
from lm_research.data.sentences import split_sentences
from lm_research.errors import ConfigError

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
            "`pip install 'lm_research[metrics]'`, or do without scores of written texts: --config.task.generate=never."
        )
    try:
        bleu(bleu_tokenizer)
    except (ImportError, RuntimeError) as error:
        extra = bleu_tokenizer.partition("-")[0]
        raise ConfigError(
            f"config.task.bleu_tokenizer={bleu_tokenizer} needs packages that are missing: `pip install 'sacrebleu[{extra}]'`. Or take "
            "another: char needs none."
        ) from error


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Share of predictions that are their target but for white space at both ends."""
    return sum(a.strip() == b.strip() for a, b in zip(predictions, targets, strict=True)) / len(targets)


def scores(
    predictions: Sequence[str], targets: Sequence[str], tokenizer: str = "13a", rouge_tokenizer: str = "auto"
) -> dict[str, float]:
    """All metrics of NAMES, of as many predictions as targets. `tokenizer` is sacrebleu's, for BLEU."""
    found = {"bleu": bleu(tokenizer).corpus_score(predictions, [targets]).score}
    found["chrf"] = chrf().corpus_score(predictions, [targets]).score
    by_record = rouge(predictions, targets, rouge_tokenizer)
    found |= {name: sum(one[name] for one in by_record) / len(by_record) for name in by_record[0]}
    return found | {"exact_match": exact_match(predictions, targets)}


def bleu(tokenizer: str) -> Any:
    """sacrebleu's BLEU; without its warning that a text looks tokenised already."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, force=True)


def chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge(predictions: Sequence[str], targets: Sequence[str], tokenizer: str = "auto") -> list[dict[str, float]]:
    """F1 of each kind of ROUGE, for each record; `tokenizer` is one of those above."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True, tokenizer=RougeTokenizer(tokenizer))
    pairs = zip(predictions, targets, strict=True)
    found = (scorer.score(in_lines(target), in_lines(prediction)) for prediction, target in pairs)
    return [{name.lower(): one[name].fmeasure for name in ROUGE} for one in found]


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
    """What becomes of a character's neighbours of its kind: a Latin text (with all that is part of no word), characters, a word."""
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
