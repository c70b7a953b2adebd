"""Corrupted texts against the texts they come from (Lewis et al. 2019, section 2.2). Bounds are five standard deviations.

Every token of the store occurs once, so a source shows what happened to each token.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.store import TokenStore
from lm_research.objectives.denoising import DenoisedTexts, poisson_ends

DOCUMENTS, SENTENCES, WORDS = 24, 40, 20
LENGTH = SENTENCES * WORDS  # tokens of a document, which fills a row
SIZE = 5 + DOCUMENTS * LENGTH
OFF = dict(text_infilling_prob=0.0, permute_sentence_prob=0.0, token_deletion_prob=0.0, document_rotation_prob=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    texts = np.arange(5, SIZE).reshape(DOCUMENTS, SENTENCES, WORDS).tolist()
    return tiny.store(tmp_path_factory.mktemp("store"), texts, SIZE)


def corrupted(store: TokenStore, epochs: int = 1, **objective: Any) -> list[tuple[list[int], list[int]]]:
    """(source, text) without their ends, which are checked, as are those of the decoder's input."""
    config = few.setting(
        "denoising", model=dict(max_length=LENGTH + 2), data=dict(max_length=LENGTH + 2), objective=OFF | objective
    )
    rows, pairs = few.examples(config, store, few.Words(SIZE)), []
    for number in range(epochs):
        batch = few.epoch(rows, number)
        for b in range(rows.num_examples):
            source = batch["source_tokens_BS"][b][batch["source_segments_BS"][b] > 0].tolist()
            target = batch["targets_BL"][b][batch["weights_BL"][b] > 0].tolist()
            assert [source[0], source[-1]] == [target[0], target[-1]] == [few.BOS, few.EOS]
            read = batch["tokens_BL"][b][batch["segments_BL"][b] > 0].tolist()
            assert read == [few.EOS, *target[:-1]]
            pairs.append((source[1:-1], target[1:-1]))
    return pairs


def test_without_noise_source_and_target_are_the_text(store: TokenStore) -> None:
    pairs = corrupted(store)
    assert all(source == target for source, target in pairs)
    assert [token for _, target in pairs for token in target] == store.tokens.tolist()


def gaps(source: list[int], target: list[int]) -> list[tuple[int, int]]:
    """(masks, tokens that are missing) before each token that stayed, and at the end."""
    found, masks, last = [], 0, target[0] - 1
    for token in [*source, target[-1] + 1]:
        if token == few.MASK:
            masks += 1
            continue
        assert token > last  # the remaining tokens keep their order
        found.append((masks, token - last - 1))
        masks, last = 0, token
    return found


def test_infilling_masks_its_fraction_in_spans_of_poisson_lengths(store: TokenStore) -> None:
    pairs = corrupted(store, epochs=3, text_infilling_prob=0.3)
    wanted, counts, alone = round(0.3 * LENGTH), [], []
    for source, target in pairs:
        found = gaps(source, target)
        assert sum(missing for _, missing in found) == wanted
        assert all(masks > 0 for masks, missing in found if missing)  # nothing is removed without a mask
        counts.append(sum(masks for masks, _ in found))
        alone += [missing for masks, missing in found if masks == 1]
    # Spans until they reach the fraction: the last exceeds it by 1.5 tokens in the mean (E[x^2] / 2 E[x] - 1/2 = 12/6 - 1/2)
    # and is cut, so there are (240 + 1.5) / 3 of them, with a variance of about 240 * 3 / 3^3.
    assert abs(np.mean(counts) - (wanted + 1.5) / 3) < 5 * math.sqrt(wanted * 3 / 27 / len(counts))
    # Isolated spans are one mask each, whatever their length, and their lengths follow the distribution.
    assert len(alone) > 2000
    for length in range(8):
        expected = math.exp(-3) * 3**length / math.factorial(length)
        share = (np.array(alone) == length).mean()
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(alone)), length


def test_spans_occur_everywhere_equally_often(store: TokenStore) -> None:
    masked = np.zeros(LENGTH)
    pairs = corrupted(store, epochs=10, text_infilling_prob=0.3)
    for source, target in pairs:
        masked += ~np.isin(target, source)
    # The fractions of 10 stretches of 80 tokens; tokens of a span come together, so a stretch counts some 80 / 4 draws.
    shares = masked.reshape(10, -1).mean(1) / len(pairs)
    assert np.abs(shares - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / (20 * len(pairs)))


def test_a_source_is_never_longer_than_its_row(store: TokenStore) -> None:
    """With very short spans most of the many insertions do not fit."""
    for source, target in corrupted(store, text_infilling_prob=0.9, **{"mean_span_length": 1.0}):
        assert len(source) <= LENGTH
        assert sum(missing for _, missing in gaps(source, target)) == round(0.9 * LENGTH)


def test_permutation_keeps_sentences_whole(store: TokenStore) -> None:
    orders = []
    for source, target in corrupted(store, permute_sentence_prob=1.0):
        sentences = np.array(source).reshape(SENTENCES, WORDS)
        assert (np.diff(sentences, axis=1) == 1).all() and sorted(source) == target
        orders.append((sentences[:, 0] - target[0]) // WORDS)
    orders = np.array(orders)
    # A random permutation leaves one in its place in the mean, with a variance of 1.
    stays = (orders == np.arange(SENTENCES)).sum(1)
    assert abs(stays.mean() - 1) < 5 / math.sqrt(len(orders))
    assert (np.bincount(orders[:, 0]) < len(orders) / 2).all()
    half = [source == target for source, target in corrupted(store, 4, permute_sentence_prob=0.5)]
    assert abs(np.mean(half) - 0.5) < 5 * math.sqrt(0.25 / len(half))


def test_rotation_begins_at_a_random_token(store: TokenStore) -> None:
    begins = []
    for source, target in corrupted(store, 4, document_rotation_prob=1.0):
        at = source[0] - target[0]
        assert source == target[at:] + target[:at]
        begins.append(at / LENGTH)
    assert abs(np.mean(begins) - 0.5) < 5 * math.sqrt(1 / 12 / len(begins))


def test_deletion_leaves_no_trace(store: TokenStore) -> None:
    gone = np.zeros(LENGTH)
    for source, target in corrupted(store, 4, token_deletion_prob=0.25):
        assert len(source) == LENGTH - round(0.25 * LENGTH) and sorted(source) == source
        gone += ~np.isin(target, source)
    assert np.abs(gone.reshape(10, -1).mean(1) / (4 * DOCUMENTS) - 0.25).max() < 0.03


def test_everything_at_once_still_ends_in_the_text(store: TokenStore) -> None:
    noise = dict(
        text_infilling_prob=0.3, permute_sentence_prob=1.0, token_deletion_prob=0.1, document_rotation_prob=0.5
    )
    for source, target in corrupted(store, **noise):
        kept = [token for token in source if token != few.MASK]
        assert set(kept) <= set(target) and len(set(kept)) == len(kept)
        left = LENGTH - round(0.1 * LENGTH)
        assert len(kept) == left - round(0.3 * left)


def test_texts_of_every_length_survive(tmp_path: pathlib.Path) -> None:
    short = tiny.store(tmp_path, tiny.documents(7, 80, (1, 4), (1, 4)))
    config = few.setting(
        "denoising", objective=dict(OFF, text_infilling_prob=0.3, permute_sentence_prob=1.0, token_deletion_prob=0.3)
    )
    rows = few.examples(config, short, few.Words())
    assert isinstance(rows, DenoisedTexts) and rows.pieces.lengths.min() == 1
    for number in range(5):
        batch = few.epoch(rows, number)
        assert (batch["source_segments_BS"].sum(1) >= 2).all()
        np.testing.assert_array_equal(batch["segments_BL"].sum(1), rows.pieces.lengths + 2)


def test_a_token_is_never_deleted_if_it_is_the_last(tmp_path: pathlib.Path) -> None:
    """95% of one token are one token, of 20 tokens 19."""
    texts = [[[5] * count] for count in (1, 2, 20)]
    config = few.setting("denoising", data=dict(max_length=32), objective=OFF | dict(token_deletion_prob=0.95))
    rows = few.examples(config, tiny.store(tmp_path, texts), few.Words())
    used = "1.00 texts a row, 30.2% of positions used"  # (3 + 4 + 22) / 96, counting two special tokens each
    assert rows.notes == f"sources: {used}; targets: {used}"
    batch = few.epoch(rows)
    assert batch["source_segments_BS"].sum(1).tolist() == [3, 3, 3] and batch["segments_BL"].sum(1).tolist() == [
        3,
        4,
        22,
    ]


@pytest.mark.parametrize("mean", [1.0, 3.0, 100.0])
def test_the_poisson_distribution(mean: float) -> None:
    """e^-m m^n / n!, up to lengths that occur less than once in 10^12 draws."""
    ends = poisson_ends(mean)
    terms = [math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(len(ends))]
    np.testing.assert_allclose(np.diff(ends, prepend=0), terms, rtol=1e-9, atol=1e-15)
    assert ends[-1] == pytest.approx(1, abs=1e-12)
