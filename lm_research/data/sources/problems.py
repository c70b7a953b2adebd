"""Damaged lines, rows and records of a corpus: each ends the reading, or is left out and counted.

Halves of characters (texts.py) are fixed and counted.
"""

from __future__ import annotations

import sys

from lm_research.errors import DataError

_SHOWN = 5


class Problems:
    """What `data.on_error` asks for, and what was left out so far.

    Attributes:
      count: lines, rows, records and ends of files that were left out.
      first: what was wrong with the first few of them, with file and line.
      fixed: records with halves of characters; first_mended: where the first of them is.
    """

    def __init__(self, policy: str = "error") -> None:
        """`policy`: "error", "skip", or "stop", where skipping is no choice."""
        self._policy = policy
        self.count = 0
        self.first: list[str] = []
        self.fixed, self.first_mended = 0, ""

    def found(self, what: str, fix: str = "Fix it") -> None:
        """Counts a problem, or raises it as a DataError; `what` begins with the file and, if there is one, the line."""
        if self._policy != "skip":
            otherwise = ", or leave out what cannot be read with --config.data.on_error=skip" * (
                self._policy == "error"
            )
            raise DataError(f"{what}. {fix}{otherwise}.")
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(what)

    def halves(self, where: str) -> None:
        """Counts a record with halves of characters, which are question marks now."""
        self.fixed += 1
        self.first_mended = self.first_mended or where

    def report(self, source: str) -> str:
        """What the log says; empty when all was well."""
        said = []
        if self.count:
            more = f", and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
            said.append(f"skipped {self.count:,} that cannot be read: {'; '.join(self.first)}{more}")
        if self.fixed:
            said.append(
                f"halves of characters (such as \\ud83d alone) became question marks in {self.fixed:,} records, the first {self.first_mended}"
            )
        return f"Warning: {source}: {'; '.join(said)}." if said else ""

    def tell(self, source: str) -> None:
        """Prints the report on standard error, where no log is kept."""
        if said := self.report(source):
            print(said, file=sys.stderr, flush=True)
