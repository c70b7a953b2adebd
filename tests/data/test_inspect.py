"""Batches as text: masks, boundaries, targets."""

from __future__ import annotations

import numpy as np

from lm_research.data.inspect import show_row


class Pieces:
    """Ids as t0, t1, ..."""

    def pieces(self, ids: list[int]) -> list[str]:
        return [f"t{token}" for token in ids]


def show(**batch: list) -> list[str]:
    return show_row({name: np.array([values]) for name, values in batch.items()}, 0, Pieces())


def test_masks_show_what_they_hide() -> None:
    """Position 2 is masked (id 4), position 3 replaced at random, position 0 is a slot that is not used."""
    lines = show(
        tokens_BL=[2, 7, 4, 9, 3, 0],
        segments_BL=[1, 1, 1, 1, 1, 0],
        mask_positions_BM=[2, 3, 0],
        targets_BM=[8, 10, 0],
        weights_BM=[1.0, 1.0, 0.0],
    )
    assert lines == ["tokens: t2 t7 「t4→t8」 「t9→t10」 t3"]


def test_documents_of_a_row_are_distinguished() -> None:
    lines = show(
        tokens_BL=[5, 6, 7, 8, 0], segments_BL=[1, 1, 2, 3, 0], targets_BL=[6, 0, 8, 9, 0], weights_BL=[1.0, 0, 1, 1, 0]
    )
    assert lines == ["tokens: t5 t6 ‖ t7 ‖ t8", "targets: t6 ␣ ‖ t8 ‖ t9"]


def test_sources_have_separate_segments() -> None:
    lines = show(
        source_tokens_BS=[5, 0],
        source_segments_BS=[1, 0],
        tokens_BL=[6, 7, 0],
        targets_BL=[7, 8, 0],
        segments_BL=[1, 1, 0],
        weights_BL=[1, 1, 0],
    )
    assert lines == ["source_tokens: t5", "tokens: t6 t7", "targets: t7 t8"]


def test_numbers_are_printed_next_to_the_text() -> None:
    assert show(tokens_BL=[5], next_sentence_B=1, row_weights_B=0.5) == [
        "tokens: t5",
        "numbers: next_sentence 1, row_weights 0.5",
    ]
