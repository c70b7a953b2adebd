"""MinHash: estimates of a known similarity, repeats found in any order of work, nothing else dropped."""

from __future__ import annotations

import numpy as np

from lm_research.data.cleaning.near_duplicates import SHINGLE, SIZE, find_near_duplicates, signature


def words(seed: int, count: int) -> list[str]:
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 10**6, count)]


def agreement(a: str, b: str) -> float:
    return float((signature(a) == signature(b)).mean())


def jaccard(a: list[str], b: list[str]) -> float:
    sets = [{tuple(x[i : i + SHINGLE]) for i in range(len(x) - SHINGLE + 1)} for x in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_agreement_estimates_the_jaccard_similarity() -> None:
    """Mean over pairs within 4 standard errors: sqrt(J (1 - J) / (128 * 24)) <= 0.009."""
    for share in (0.3, 0.6, 0.9):
        errors = []
        for seed in range(24):
            base = words(seed, 200)
            other = base[: int(200 * share)] + words(1000 + seed, 200 - int(200 * share))
            errors.append(agreement(" ".join(base), " ".join(other)) - jaccard(base, other))
        assert abs(np.mean(errors)) < 0.036, share
    assert agreement("a b c d e f g", "a b c d e f g") == 1.0


def test_capitals_punctuation_and_spaces_do_not_count() -> None:
    assert agreement("The cat, sat. On the MAT!", "the cat sat on\nthe mat") == 1.0
    assert agreement("今日は晴れ。明日は雨だそうです", "今日は晴れ明日は雨だそうです") == 1.0


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "".join(chr(0x4E00 + n) for n in np.random.default_rng(0).integers(0, 3000, 400))
    changed = text[:200] + "猫" + text[201:]
    assert 0.9 < agreement(text, changed) < 1.0


def test_repeats_are_dropped_and_first_ones_kept() -> None:
    texts = [words(seed, 300) for seed in range(30)]
    near = list(texts[4])
    near[150] = "changed"  # 5 of 296 shingles differ: similarity 291 / 301
    half = texts[7][:150] + words(99, 150)
    signatures = np.stack([signature(" ".join(text)) for text in [*texts, near, half, texts[0]]])
    assert np.flatnonzero(find_near_duplicates(signatures, 0.8)).tolist() == [30, 32]
    assert np.flatnonzero(find_near_duplicates(signatures, 0.5)).tolist() == [
        30,
        32,
    ]  # 146 of 446 shingles are half's and 7's
    assert not find_near_duplicates(signatures[:30], 0.1).any()
    assert signatures.dtype == np.uint32 and signatures.shape == (33, SIZE)


def test_short_and_empty_texts() -> None:
    signatures = np.stack([signature(text) for text in ("one", "two", "one", "", "?!")])
    assert find_near_duplicates(signatures, 0.9).tolist() == [False, False, True, False, True]


def test_signature_is_the_same_everywhere() -> None:
    """A change would change which documents a prepared corpus keeps."""
    assert signature("In the beginning God created the heavens")[:3].tolist() == [1683639288, 1193513915, 96183697]
