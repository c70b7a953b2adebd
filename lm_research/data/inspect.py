"""Show batches in readable form: pieces instead of ids, and masked positions with their targets.

Legend: B rows, L length, M masked positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lm_research.tokenizers.base import Tokenizer

_BOUNDARY = "‖"  # between documents of one row
LEGEND = f"「a→b」 is a in the input and has target b; ␣ is not a target; {_BOUNDARY} separates the texts of a row"
_ID_ARRAYS = ("tokens", "targets")


def show_row(batch: Mapping[str, np.ndarray], row: int, tokenizer: Tokenizer) -> list[str]:
    """Format one row as a line "name: pieces" for each array of ids, and one line for its scalars.

    Args:
      batch: a batch of an objective's examples: arrays [B, ...] whose names end in their axes. With mask_positions_BM, each masked
        position is shown as 「input→target」. Targets of weight 0 are shown as ␣.
      row: number of the row.
      tokenizer: converts ids to pieces.
    """
    return [f"{name}: {text}" for name, text in _lines({key: value[row] for key, value in batch.items()}, tokenizer)]


def _lines(row: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    masked = {} if "mask_positions_BM" not in row else _masked(row)
    for key, values in row.items():
        name, _, axes = key.rpartition("_")
        if values.ndim == 1 and name.endswith(_ID_ARRAYS) and axes != "BM":
            yield name, " ".join(_pieces(key, row, masked if name == "tokens" else {}, tokenizer))
    scalars = {key.rpartition("_")[0]: values for key, values in row.items() if values.ndim == 0}
    if scalars:
        yield "numbers", ", ".join(f"{name} {value:.10g}" for name, value in scalars.items())


def _masked(row: Mapping[str, np.ndarray]) -> dict[int, int]:
    """Map masked positions to target ids."""
    real = row["weights_BM"] > 0
    return dict(zip(row["mask_positions_BM"][real].tolist(), row["targets_BM"][real].tolist(), strict=True))


def _pieces(key: str, row: Mapping[str, np.ndarray], masked: dict[int, int], tokenizer: Tokenizer) -> list[str]:
    name, _, axes = key.rpartition("_")
    prefix = name.removesuffix("tokens").removesuffix("targets")
    segments = row.get(f"{prefix}segments_{axes}")
    weights = row.get(f"{prefix}weights_{axes}") if name.endswith("targets") else None
    pieces = tokenizer.pieces(row[key].tolist())
    shown: list[str] = []
    before = None
    for place, piece in enumerate(pieces):
        segment = None if segments is None else int(segments[place])
        if segment == 0:
            continue
        if before not in (None, segment):
            shown.append(_BOUNDARY)
        before = segment
        if place in masked:
            shown.append(f"「{piece}→{tokenizer.pieces([masked[place]])[0]}」")
        else:
            shown.append("␣" if weights is not None and not weights[place] else piece)
    return shown
