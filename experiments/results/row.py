"""The contract of a row of the table of results."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

from lm_research.errors import DataError

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIABLE = "LM_RESEARCH_PUBLIC_DATA"
CURVE = "curve.json"  # {"heads": names of columns, "lines": their values}, of a training run
# Where a published figure was read: in a file that comes with the data, computed from the data by another program, or from memory.
READ, COMPUTED, MEMORY = "read", "computed", "from memory"


WIDEST = 1 / 3  # half of an interval, as a fraction of the published value


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of a row.

    Attributes:
      name: what is measured, with its unit or scale.
      ours: this library's value.
      theirs: the published value.
      tolerance: largest difference of equal results; a half of the published value's last digit, or the spread over seeds.
      origin: READ, COMPUTED or MEMORY.
      at_least: theirs is a goal, and ours may exceed it.
      at_most: theirs is a goal, and ours may be lower.
      interval: half-width of the 95% interval of ours over its seeds; 0 where nothing is drawn, and where there is one seed.
    """

    name: str
    ours: float
    theirs: float
    tolerance: float
    origin: str = READ
    at_least: bool = False
    at_most: bool = False
    interval: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether ours equals theirs within the tolerance, or reaches it. An interval of more than a third of theirs equals nothing."""
        is_goal = self.at_least or self.at_most
        if not is_goal and self.interval > WIDEST * abs(self.theirs):
            return False
        above = self.ours - self.theirs
        return (self.at_least or above <= self.tolerance) and (self.at_most or above >= -self.tolerance)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: what was published, and how it is measured here.

    Attributes:
      title: the question, a few words.
      source: where the published figures come from.
      why: why the figures are equal, or differ.
      measure: computes the figures; its argument is a folder for intermediate files, in which it may write CURVE. None: planned, or run
        by hand.
      command: the command of the whole row; "" is experiments.results.run with the row's name.
      seeds: the seeds of its runs; () where nothing is drawn, and the row takes minutes at most.
      group: another name by which --only selects the row, with others.
    """

    title: str
    source: str
    why: str
    measure: Callable[[pathlib.Path], list[Figure]] | None = None
    command: str = ""
    seeds: tuple[int, ...] = ()
    group: str = ""


class MissingData(DataError):
    """Data or weights of a row are not on this machine."""


def data_folder() -> pathlib.Path:
    """Return the folder of public data: LM_RESEARCH_PUBLIC_DATA, or else ../shared/data/public next to the repository."""
    return pathlib.Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data" / "public")


def public(name: str) -> pathlib.Path:
    """Return a file or folder of the public data; raise MissingData if it does not exist."""
    path = data_folder() / name
    if not path.exists():
        raise MissingData(f"{path} does not exist. Set {VARIABLE} to the folder of the public data that has {name}.")
    return path
