"""Attentions of encoders with windows, which transformers returns by window or block, as [B, H, L, L] or [B, H, L, L + sums]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def of_windows(local_BHLW: np.ndarray, whole_BHLG: np.ndarray | None, chosen_BL: np.ndarray) -> np.ndarray:
    """LED's: first the keys of the positions with global attention, then those of a window around each position.

    `whole_BHLG` are the probabilities of the positions with global attention, which have no window.
    """
    batch, heads, length, width = local_BHLW.shape
    count = 0 if whole_BHLG is None else whole_BHLG.shape[3]
    full = np.zeros((batch, heads, length, length), np.float32)
    for row in range(batch):
        places = np.flatnonzero(chosen_BL[row])
        for number, place in enumerate(places):
            full[row, :, :, place] += local_BHLW[row, :, :, number]
        for query in range(length):
            for step in range(width - count):
                key = query + step - (width - count) // 2
                if 0 <= key < length:
                    full[row, :, query, key] += local_BHLW[row, :, query, count + step]
        for number, place in enumerate(places):
            full[row, :, place] = whole_BHLG[row, :, :length, number]
    return full


def of_blocks(probs_BNHQK: np.ndarray, length: int) -> np.ndarray:
    """LongT5's: for each block of Q positions the keys of three blocks, and then those of sums."""
    batch, blocks, heads, size, width = probs_BNHQK.shape
    full = np.zeros((batch, heads, length, length + width - 3 * size), np.float32)
    for query in range(length):
        block, place = divmod(query, size)
        for step in range(3 * size):
            key = (block - 1) * size + step
            if 0 <= key < length:
                full[:, :, query, key] = probs_BNHQK[:, block, :, place, step]
        full[:, :, query, length:] = probs_BNHQK[:, block, :, place, 3 * size :]
    return full


def encoder_attentions(
    kind: str, layers: Sequence[np.ndarray], inputs: dict, whole: Sequence[np.ndarray]
) -> np.ndarray:
    """Those of all layers of a model_type; `whole` are LED's encoder_global_attentions."""
    length = inputs["input_ids"].shape[1]
    if kind == "longt5":
        return np.stack([of_blocks(layer, length) for layer in layers])
    if kind == "led":
        chosen = inputs.get("global_attention_mask", np.zeros_like(inputs["input_ids"]))
        pairs = zip(layers, whole or [None] * len(layers), strict=True)
        return np.stack([of_windows(*pair, chosen) for pair in pairs])
    return np.stack(layers)
