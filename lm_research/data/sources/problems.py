"""Damaged lines, rows and records of a corpus: each ends the reading, or is left out and counted."""

from __future__ import annotations

from lm_research.errors import DataError

_SHOWN = 5


class Problems:
    """What `data.on_error` asks for, and what was left out so far.

    Attributes:
      count: lines, rows, records and ends of files that were left out.
      first: what was wrong with the first few of them, with file and line.
    """

    def __init__(self, policy: str = "error") -> None:
        """`policy`: "error", "skip", or "stop", where skipping is no choice."""
        self._policy = policy
        self.count = 0
        self.first: list[str] = []

    def found(self, what: str, fix: str = "Mend it") -> None:
        """Counts a problem, or raises it as a DataError; `what` begins with the file and, if there is one, the line."""
        if self._policy != "skip":
            otherwise = ", or leave out what cannot be read with --config.data.on_error=skip" * (
                self._policy == "error"
            )
            raise DataError(f"{what}. {fix}{otherwise}.")
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(what)

    def report(self, source: str) -> str:
        """One line for the log; empty when all was well."""
        if not self.count:
            return ""
        more = f", and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"Warning: {source}: skipped {self.count:,} that cannot be read: {'; '.join(self.first)}{more}."
