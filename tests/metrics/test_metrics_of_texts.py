"""Scores of generated texts: values that follow from counting, and the packages they come from."""

from __future__ import annotations

import numpy as np
import pytest
import rouge_score.tokenizers
import sacrebleu

from lm_research.evaluation.scorers import GenerationScorer
from lm_research.metrics import MetricInputs, texts

WRITTEN = ["the cat sat on the mat . it slept", "a dog", "it is raining in the north of the city today"]
TARGETS = ["the cat sat on a mat . it slept well", "a dog", "it rains in the north of the city"]


def score(written: list[str], targets: list[str], **options: str) -> dict[str, float]:
    return MetricInputs("texts", predictions=written, references=targets, **options).score(texts.NAMES)


def test_a_text_equal_to_its_target_scores_1_and_one_without_overlap_0() -> None:
    text = ["one two three four five"]
    perfect = score(text, text)
    assert {name: round(value, 9) for name, value in perfect.items()} == {
        name: 100.0 if name in ("bleu", "chrf") else 1.0 for name in texts.NAMES
    }
    other = score(["qqq"], ["one two"])
    assert set(other.values()) == {0.0}


def test_rouge_by_counting() -> None:
    """2 of 3 words shared with 2 of 4: F1 = 2 * (2/3) * (2/4) / (2/3 + 2/4) = 4/7; no pair is shared."""
    (found,) = texts.rouge(["a x b"], ["a y b z"])
    assert found == pytest.approx([4 / 7, 0, 4 / 7, 4 / 7])  # rouge1, 2, L and Lsum


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        (
            "auto",
            "Running the 3 tests, again!",
            "run the 3 test again",
        ),  # Porter's stems, of words of four letters and more
        ("auto", "東京は晴れ、25度。OK", "東 京 は 晴 れ 25 度 ok"),
        ("auto", "ฉันรักแมว", "ฉ ั น ร ั ก แ ม ว"),
        ("auto", "Кошка спит; καλημέρα, مرحبا بالعالم!", "кошка спит καλημέρα مرحبا بالعالم"),
        ("auto", "हिन्दी भाषा। 한국어 문장", "हिन्दी भाषा 한국어 문장"),
        ("auto", "、。 ！", ""),
        ("character", "Été, 12 猫", "é t é 1 2 猫"),
        ("whitespace", "今天 天气 Nice, Days", "今天 天气 nice, days"),
        ("rouge_score", "東京は 25 years", "25 year"),
    ],
)
def test_tokens_that_rouge_counts(name: str, text: str, tokens: str) -> None:
    assert texts.RougeTokenizer(name).tokenize(text) == tokens.split()


@pytest.mark.parametrize("text", [*WRITTEN, *TARGETS, "L'été, naïve café; Größe - e\u0301t 12.5% snake_case", "--"])
def test_latin_script_has_rouge_scores_own_tokens(text: str) -> None:
    stemmer = rouge_score.tokenizers.DefaultTokenizer(use_stemmer=True)
    assert texts.RougeTokenizer().tokenize(text) == stemmer.tokenize(text)


@pytest.mark.parametrize(
    ("written", "target", "rouge1", "rouge2"),
    [
        ("我们去公园。", "我们去学校。", 3 / 5, 2 / 4),  # of five characters and four pairs on either side
        ("ฉันรักแมว", "ฉันรักหมา", 7 / 9, 5 / 8),
        ("кошка спит дома", "кошка спит", 2 * 2 / (3 + 2), 2 * 1 / (2 + 1)),
    ],
)
def test_rouge_of_other_scripts_by_counting(written: str, target: str, rouge1: float, rouge2: float) -> None:
    (found,) = texts.rouge([written], [target])
    assert found[:2] == pytest.approx([rouge1, rouge2])


def test_a_text_of_one_line_is_divided_into_sentences() -> None:
    assert texts.split_into_lines(" One ends. Two ends. ") == "One ends.\nTwo ends."
    assert texts.split_into_lines("One. Two.\nThree.") == "One. Two.\nThree."


def test_bleu_uses_the_given_tokenizer() -> None:
    written, targets = ["今天 天气很好我们去公园"], ["今天天气很好我们去公园"]
    assert score(written, targets, bleu_tokenizer="zh")["bleu"] == pytest.approx(100)
    assert score(written, targets, bleu_tokenizer="13a")["bleu"] < 50


def test_scores_of_a_sample_are_those_of_its_texts() -> None:
    """Confidence intervals rely on this: scores from summed counts equal sacrebleu's on the same examples."""
    rows = [{"prediction": a, "target": b, "exact_match": float(a == b)} for a, b in zip(WRITTEN, TARGETS, strict=True)]
    scorer = GenerationScorer(rows, (), bleu_tokenizer="13a")
    for index in ([0, 1, 2], [2, 2, 0], [1]):
        written, targets = ([side[i] for i in index] for side in (WRITTEN, TARGETS))
        found = scorer.score(np.array(index))
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [targets]).score)
        assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [targets]).score)
        assert found == pytest.approx(score(written, targets))
