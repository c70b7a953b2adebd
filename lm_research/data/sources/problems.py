"""Unreadable lines, rows and records of a corpus: each raises an error, or is skipped and counted.

Lone surrogates (texts.py) are replaced and counted.
"""

from __future__ import annotations

import sys

from lm_research.errors import DataError

_SHOWN = 5


class Problems:
    """Handles unreadable input by `data.on_error`, and collects what was skipped.

    Attributes:
      count: number of skipped lines, rows, records and ends of files.
      first: descriptions of the first few, with file and line.
      num_fixed: number of records with lone surrogates.
      first_fixed: file and line of the first such record.
    """

    def __init__(self, policy: str = "error") -> None:
        """Start with nothing skipped; `policy` is "error", "skip", or "stop", which is "error" without the hint to skip."""
        self._policy = policy
        self.count = 0
        self.first: list[str] = []
        self.num_fixed, self.first_fixed = 0, ""

    def found(self, what: str, fix: str = "Fix it") -> None:
        """Count a problem, or raise it as a DataError; `what` begins with the file and the line, if any."""
        if self._policy != "skip":
            otherwise = ", or skip unreadable input with --config.data.on_error=skip" * (self._policy == "error")
            raise DataError(f"{what}. {fix}{otherwise}.")
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(what)

    def surrogates(self, where: str) -> None:
        """Count a record whose lone surrogates were replaced by question marks."""
        self.num_fixed += 1
        self.first_fixed = self.first_fixed or where

    def report(self, source: str) -> str:
        """Summarize the problems as a line for the log; "" if there were none."""
        parts = []
        if self.count:
            more = f", and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
            parts.append(f"skipped {self.count:,} that cannot be read: {'; '.join(self.first)}{more}")
        if self.num_fixed:
            parts.append(
                f"lone surrogates (such as \\ud83d) became question marks in {self.num_fixed:,} records, first in {self.first_fixed}"
            )
        return f"Warning: {source}: {'; '.join(parts)}." if parts else ""

    def print_report(self, source: str) -> None:
        """Print the report on standard error, for callers without a log."""
        if report := self.report(source):
            print(report, file=sys.stderr, flush=True)
