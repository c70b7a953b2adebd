"""What is timed: GPT-2 of random weights says NEW tokens after PROMPT tokens of random ids, without an end token."""

from __future__ import annotations

import dataclasses

import numpy as np

VOCAB_SIZE = 50257
MAX_LENGTH = 1024
PROMPT, NEW = 64, 128
STD = 0.02


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a shape, rows of a batch, beams; `goal` is the ratio that is aimed at."""

    layers: int
    width: int
    batch: int
    beams: int
    goal: float

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}-{'beam' + str(self.beams) if self.beams > 1 else 'batch' + str(self.batch)}"

    @property
    def tokens(self) -> int:
        """New tokens of a call."""
        return self.batch * NEW

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a new token (of all rows) has to read: the blocks and the token table, in float32."""
        return 4 * (12 * self.layers * self.width**2 + VOCAB_SIZE * self.width)


ROWS = tuple(
    Row(layers, width, batch, beams, goal)
    for layers, width, goal in ((4, 256, 4.0), (12, 768, 1.3))
    for batch, beams, goal in ((1, 1, goal), (8, 1, goal), (1, 4, 3.0))
)


def choose(names: str) -> list[Row]:
    """Rows by name, separated by commas; "all" or "small" (4x256).

    Raises:
      ValueError: a name that is none.
    """
    if names in ("all", "small"):
        return [row for row in ROWS if names == "all" or row.width == 256]
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise ValueError(f"No row {', '.join(unknown)}. Rows: all, small, {', '.join(known)}.")
    return [known[name] for name in names.split(",")]


def prompts(row: Row, call: int) -> np.ndarray:
    """Token ids [batch, PROMPT], others for each call."""
    return np.random.default_rng(call).integers(0, VOCAB_SIZE, (row.batch, PROMPT)).astype(np.int32)
