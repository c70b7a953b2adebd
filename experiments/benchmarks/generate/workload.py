"""The timed work: GPT-2 with random weights generates NEW tokens after PROMPT random tokens, without an end token."""

from __future__ import annotations

import dataclasses

import numpy as np

VOCAB_SIZE = 50257
MAX_LENGTH = 1024
PROMPT, NEW = 64, 128
STD = 0.02


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a shape, rows of a batch, beams; `goal` is the target ratio."""

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
        """Number of new tokens in a call."""
        return self.batch * NEW

    @property
    def step_numbers(self) -> int:
        """Number of weights that one new token (for all rows) has to read: the blocks and the token table."""
        return 12 * self.layers * self.width**2 + VOCAB_SIZE * self.width


ROWS = tuple(
    Row(layers, width, batch, beams, goal)
    for layers, width, goal in ((4, 256, 4.0), (12, 768, 1.3))
    for batch, beams, goal in ((1, 1, goal), (8, 1, goal), (1, 4, 3.0))
)


def choose(names: str) -> list[Row]:
    """Return rows by name, separated by commas; "all" or "small" (4x256).

    Raises:
      ValueError: a name is not a row.
    """
    if names in ("all", "small"):
        return [row for row in ROWS if names == "all" or row.width == 256]
    rows = {row.name: row for row in ROWS}
    unknown = [name for name in names.split(",") if name not in rows]
    if unknown:
        raise ValueError(f"No row {', '.join(unknown)}. Rows: all, small, {', '.join(rows)}.")
    return [rows[name] for name in names.split(",")]


def prompts(row: Row, call: int) -> np.ndarray:
    """Return token ids [batch, PROMPT], different for each call."""
    return np.random.default_rng(call).integers(0, VOCAB_SIZE, (row.batch, PROMPT)).astype(np.int32)
