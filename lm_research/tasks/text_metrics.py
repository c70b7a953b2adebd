"""How close written texts come to given ones: BLEU and chrF by sacrebleu, ROUGE by rouge-score, and exact match.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) go from 0 to 100 and are of the whole corpus, as sacrebleu has them (Post 2018).
ROUGE-1, -2, -L and -Lsum (Lin 2004) are mean F1 over records with Porter's stemmer, and go from 0 to 1, as does exact match. ROUGE
knows Latin letters and digits alone. ROUGE-Lsum takes each line for a sentence; a text of one line is divided into its sentences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from lm_research.data.sentences import split_sentences
from lm_research.errors import ConfigError

PACKAGES = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NAMES = ("bleu", "chrf", *(name.lower() for name in ROUGE), "exact_match")


def check_installed() -> None:
    """Raises a ConfigError if a package that these metrics need is missing."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"BLEU, chrF and ROUGE need the package{'s' * (len(missing) > 1)} {' and '.join(missing)}. Install them with "
            "`pip install 'lm_research[metrics]'`, or do without scores of written texts: --config.task.generate=never."
        )


def exact_match(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Share of predictions that are their target but for white space at both ends."""
    return sum(a.strip() == b.strip() for a, b in zip(predictions, targets, strict=True)) / len(targets)


def scores(predictions: Sequence[str], targets: Sequence[str], tokenizer: str = "13a") -> dict[str, float]:
    """All metrics of NAMES, of as many predictions as targets. `tokenizer` is sacrebleu's, for BLEU."""
    found = {"bleu": bleu(tokenizer).corpus_score(predictions, [targets]).score}
    found["chrf"] = chrf().corpus_score(predictions, [targets]).score
    by_record = rouge(predictions, targets)
    found |= {name: sum(one[name] for one in by_record) / len(by_record) for name in by_record[0]}
    return found | {"exact_match": exact_match(predictions, targets)}


def bleu(tokenizer: str) -> object:
    """sacrebleu's BLEU; without its warning that a text looks tokenised already."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, force=True)


def chrf() -> object:
    from sacrebleu.metrics import CHRF

    return CHRF()


def rouge(predictions: Sequence[str], targets: Sequence[str]) -> list[dict[str, float]]:
    """F1 of each kind of ROUGE, for each record."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True)
    pairs = zip(predictions, targets, strict=True)
    found = (scorer.score(in_lines(target), in_lines(prediction)) for prediction, target in pairs)
    return [{name.lower(): one[name].fmeasure for name in ROUGE} for one in found]


def in_lines(text: str) -> str:
    """A text with a sentence on each line: its own lines if it has several."""
    text = text.strip()
    return text if "\n" in text else "\n".join(split_sentences(text))
