"""Metrics where thresholds, ties and empty counts decide, by arithmetic shown."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

from lm_research.errors import ConfigError
from lm_research.metrics import MetricInputs, texts

A = np.array
TAGS = [["B-x", "O", "O"]]

CASES: list[tuple[str, dict[str, Any], dict[str, float]]] = [
    # Three questions with an answer: exact, 1 of 2 words for 1 (F1 2/3), and wrong. Two without: one is left unanswered, one is not.
    ("answers", dict(predictions=["cat", "dog sat", "owl", "", "cow"], references=[["cat"], ["dog"], ["hen"], (), ()], null=True),
     dict(exact_match=2 / 5, f1=(1 + 2 / 3 + 1) / 5, has_answer_exact_match=1 / 3, has_answer_f1=(1 + 2 / 3) / 3,
          no_answer_exact_match=1 / 2, no_answer_f1=1 / 2)),
    # Answered in order of margins: nothing 1 of 3, the first 2, the second (wrong) 2, the third (which has none) 1.
    ("answers", dict(margins=[-1.0, 0.0, 2.0], best_answers=["cat", "cow", "cow"], references=[["cat"], ["dog"], ()]),
     dict(best_f1=2 / 3, best_null_threshold=-1.0)),
    # Equal margins are decided together, never only the first, which would give two correct answers.
    ("answers", dict(margins=[0.0, 0.0], best_answers=["cat", "cow"], references=[["cat"], ()]),
     dict(best_f1=1 / 2, best_null_threshold=math.nextafter(0.0, -1.0))),
    ("answers", dict(margins=[1.0], best_answers=["cat"], references=[["cat"]]), dict(best_f1=1.0, best_null_threshold=1.0)),
    ("answers", dict(margins=[3.0, 1.0], best_answers=["cat", "cat"], references=[(), ()]),
     dict(best_f1=1.0, best_null_threshold=math.nextafter(1.0, 0.0))),
    # 6 nats of 3 tokens, 2 words, 12 bytes.
    ("likelihoods", dict(nats=A([-2.0, -4.0]), tokens=A([2, 1]), words=A([1, 1]), bytes=A([4, 8])),
     dict(perplexity=math.exp(2), word_perplexity=math.exp(3), bits_per_byte=6 / 12 / math.log(2))),
    ("likelihoods", dict(nats=A([-1e6]), tokens=A([10**6]), words=A([1]), bytes=A([1])), dict(word_perplexity=math.exp(700))),
    # Equally likely is not likelier: -6 and -6; a token: -4/2 and -6/3.
    ("minimal_pairs", dict(good_nats=A([-4.0, -6.0, -4.5, -4.0]), bad_nats=A([-5.0, -6.0, -4.0, -6.0]),
                           good_tokens=A([2, 3, 5, 2]), bad_tokens=A([2, 2, 2, 3])), dict(accuracy=2 / 4, accuracy_per_token=3 / 4)),
    ("ranks", dict(ranks=A([1, 2, 5, 6, 10, 11])),
     dict(recall_at_1=1 / 6, recall_at_5=3 / 6, recall_at_10=5 / 6, mrr_at_10=(1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 10) / 6)),
    ("multi_label", dict(predictions=A([[1, 0], [1, 1], [0, 1]], bool), references=A([[1, 0], [1, 0], [1, 0]], bool)),
     dict(exact_match=1 / 3, precision=2 / 4, recall=2 / 3, f1_micro=4 / 7, f1_macro=(4 / 5 + 0 / 2) / 2)),
    ("tags", dict(predictions=TAGS, references=TAGS), dict(accuracy=1.0, precision=1.0, recall=1.0, f1=1.0)),
    ("tags", dict(predictions=[["O", "O", "O"]], references=TAGS), dict(accuracy=2 / 3, precision=0.0, recall=0.0, f1=0.0)),
    ("tags", dict(predictions=[[]], references=[[]]), dict(accuracy=0.0, precision=0.0, recall=0.0, f1=0.0)),
    # Confidences 1 (wrong) and 0.96 (right) share the last of 15 bins, from 14/15; 0.9 (right) is in the one before.
    ("single_label", dict(predictions=A([1, 0, 0]), references=A([0, 0, 0]), num_labels=2,
                          logits=A([[0.0, 1000.0], [math.log(24), 0.0], [math.log(9), 0.0]])),
     dict(calibration_error=(abs(-1 + 0.04) + 0.1) / 3, accuracy=2 / 3)),
    # The last class of three has the highest probability in the second record, though the first has the higher logit.
    ("single_label", dict(logits=A([[0.0, 5.0, 1.0], [0.0, 0.0, 0.9]]), references=A([0, 2]), groups=A([0, 0]), credits=A([0.2, 0.7])),
     dict(choice_accuracy=1.0, choice_credit=0.7)),
    ("values", dict(predictions=A([0.0, 1.0]), references=A([0.0, 1.0])), dict(pearson=1.0, spearman=1.0, squared_error=0.0)),
    ("values", dict(predictions=A([0.0, 0.5]), references=A([3.0, 1.0])), dict(pearson=-1.0, spearman=-1.0, squared_error=(9 + 0.25) / 2)),
    ("values", dict(predictions=A([1.0]), references=A([2.0])), dict(pearson=0.0, spearman=0.0)),
    ("records", dict(predictions=["a", "b", "c"], references=["a", "b", "d"]), dict(accuracy=2 / 3)),
    # The same words in another order: no bigram of three is shared; red green black is the longest subsequence of four.
    ("texts", dict(predictions=["red blue green black"], references=["red green blue black"]),
     dict(rouge1=1.0, rouge2=0.0, rougel=3 / 4, rougelsum=3 / 4, exact_match=0.0)),
    # Two lines are swapped: 2 of 3 bigrams, 2 of 4 words in order, and every line is there.
    ("texts", dict(predictions=["blue black\nred green"], references=["red green\nblue black"]),
     dict(rouge1=1.0, rouge2=2 / 3, rougel=2 / 4, rougelsum=1.0, exact_match=0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "expected"), CASES)
def test_by_hand(kind: str, given: dict[str, Any], expected: dict[str, float]) -> None:
    assert MetricInputs(kind, **given).score(expected) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "tokens"), [("e\u0300t", ["e", "t"]), ("e\u036ft", ["e", "t"]), ("e\u0370t", ["e", "\u0371", "t"])]
)
def test_accents_belong_to_latin_letters_and_what_follows_their_block_does_not(text: str, tokens: list[str]) -> None:
    """Combining marks are U+0300 to U+036F; U+0370 is the Greek letter Heta, in lower case U+0371."""
    assert texts.RougeTokenizer().tokenize(text) == tokens


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    texts.check_installed()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge_score" else object())
        with pytest.raises(ConfigError, match="need the package rouge-score. "):
            texts.check_installed()
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="need the packages sacrebleu and rouge-score. "):
            texts.check_installed()

    def lacking(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(texts, "_bleu", lacking)
    with pytest.raises(ConfigError, match=r"bleu_tokenizer=ja-mecab .*sacrebleu\[ja\]"):
        texts.check_installed("ja-mecab")
