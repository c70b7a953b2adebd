"""The timed work: rows of the tables, and the batches on which both sides train.

Legend: B batch, L length, M masked positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

VOCAB_SIZE = {"bert": 30522, "gpt2": 50257}
MAX_LENGTH = {"bert": 512, "gpt2": 1024}
MASK_RATE = 0.15
# The training recipe of both sides; dropout as in both papers.
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, DROPOUT = 1e-4, 0.01, 1.0, 0.1
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-6

MODES = {
    "paper": "dropout 0.1 everywhere; transformers projects every position onto the vocabulary, we only the masked ones",
    "equal": "no dropout; both sides project the same positions onto the vocabulary",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      family: "bert" (masked tokens and next sentence) or "gpt2" (next token).
      layers, width: size of the model; heads of width 64, feed-forward 4 x width.
      length, batch: tokens per example and examples per step.
      mode: a key of `MODES`.
      dtype: "float32", or "bfloat16" compute with float32 parameters.
    """

    family: str
    layers: int
    width: int
    length: int
    batch: int
    mode: str = "paper"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.family}-{self.layers}x{self.width}-{self.length}"

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch * self.length

    @property
    def num_masked(self) -> int:
        """M: 20 of 128 and 77 of 512."""
        return math.ceil(self.length * MASK_RATE)

    @property
    def dropout(self) -> float:
        return DROPOUT if self.mode == "paper" else 0.0

    @property
    def goal(self) -> float | None:
        """Ratio of our speed to PyTorch's that is the project's goal on a CPU; none elsewhere."""
        if self.dtype != "float32":
            return None
        if self.mode == "equal":
            return 1.1
        if self.family == "gpt2":
            return 1.25
        return 2.0 if self.width >= 512 else 3.0


# (layers, width) -> batch at length 128 and at 512, so that a step takes at most a few seconds on two cores.
_CPU_BATCH = {(2, 128): (16, 8), (4, 256): (16, 8), (4, 512): (16, 8)}
CPU_ROWS = tuple(
    Row(family, layers, width, length, batches[length == 512])
    for family in ("bert", "gpt2")
    for (layers, width), batches in _CPU_BATCH.items()
    for length in (128, 512)
)
QUICK_ROWS = tuple(row for row in CPU_ROWS if row.width == 128 and row.length == 128)
ACCELERATOR_ROWS = (
    Row("bert", 12, 768, 128, 256, dtype="bfloat16"),
    Row("bert", 12, 768, 512, 64, dtype="bfloat16"),
    Row("bert", 24, 1024, 128, 128, dtype="bfloat16"),
    Row("bert", 24, 1024, 512, 32, dtype="bfloat16"),
    Row("gpt2", 12, 768, 1024, 16, dtype="bfloat16"),
)


def choose(names: str, modes: str, platform: str) -> list[Row]:
    """Return the rows named on the command line, table by table.

    Args:
      names: "quick", "all", or names of rows separated by commas.
      modes: modes separated by commas.
      platform: "cpu", "gpu" or "tpu"; decides what "all" means.

    Raises:
      ValueError: a row or mode is unknown; the message lists the valid ones.
    """
    everything = {row.name: row for row in (*CPU_ROWS, *ACCELERATOR_ROWS)}
    sets = {"quick": QUICK_ROWS, "all": CPU_ROWS if platform == "cpu" else ACCELERATOR_ROWS}
    row_names, mode_names = names.split(","), modes.split(",")
    for kind, given, valid in (("row", row_names, [*sets, *everything]), ("mode", mode_names, list(MODES))):
        if unknown := [name for name in given if name not in valid]:
            raise ValueError(f"No {kind} {unknown[0]!r}. Valid: {', '.join(valid)}.")
    rows = [row for name in row_names for row in sets.get(name, (everything.get(name),))]
    return [dataclasses.replace(row, mode=mode) for mode in mode_names for row in dict.fromkeys(rows)]


def batches(row: Row, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield endless random batches under the names of lm_research's batches; every token is real, every row full.

    bert: tokens, types, segments [B, L]; mask_positions, targets, weights [B, M]; next_sentence, row_weights [B].
    gpt2: tokens, targets, positions, segments, weights [B, L].
    """
    rng = np.random.default_rng(seed)
    shape, vocab = (row.batch, row.length), VOCAB_SIZE[row.family]
    ones = np.ones(shape, np.int32)
    columns = np.broadcast_to(np.arange(row.length, dtype=np.int32), shape)
    while True:
        if row.family == "gpt2":
            stream = rng.integers(0, vocab, (row.batch, row.length + 1), dtype=np.int32)
            batch: dict[str, Any] = {"tokens_BL": stream[:, :-1], "targets_BL": stream[:, 1:], "positions_BL": columns}
            yield batch | {"segments_BL": ones, "weights_BL": np.ones(shape, np.float32)}
            continue
        chosen = rng.random(shape).argpartition(row.num_masked, axis=1)[:, : row.num_masked]
        yield {
            "tokens_BL": rng.integers(0, vocab, shape, dtype=np.int32),
            "types_BL": (columns >= row.length // 2).astype(np.int32),
            "segments_BL": ones,
            "mask_positions_BM": np.sort(chosen, axis=1).astype(np.int32),
            "targets_BM": rng.integers(0, vocab, chosen.shape, dtype=np.int32),
            "weights_BM": np.ones(chosen.shape, np.float32),
            "next_sentence_B": rng.integers(0, 2, row.batch, dtype=np.int32),
            "row_weights_B": np.ones(row.batch, np.float32),
        }
