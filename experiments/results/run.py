"""`python -m experiments.results.run [--only NAME,NAME]`: measure rows of the table of results, and write it.

A row compares published figures with this library's, and is one file of experiments/results/rows. Its measurement is stored in
pages/NAME.json, its page is pages/NAME.md, and the table is results.md. --list prints the names of rows, and of groups (glue, classify,
translation), which select all of their rows. Without --only, the rows that need no training are measured; those that train take minutes
or hours, and continue an interrupted run if --workdir is given. A row that fails stays in the table with the reason, and one that has not
been measured with its command.

The data are read from the folder that LM_RESEARCH_PUBLIC_DATA names, by default ../shared/data/public next to the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

from experiments.results import tables
from experiments.results.row import CURVE, MissingData, Row
from lm_research import __version__, cli
from lm_research.common import flags
from lm_research.common.disk import write_atomically
from lm_research.errors import DONE, ConfigError, UserError, suggest

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def rows() -> dict[str, Row]:
    """Import all rows, by name, in the order of their file names."""
    names = sorted(path.stem for path in (FOLDER / "rows").glob("*.py"))
    return {name: importlib.import_module(f"experiments.results.rows.{name}").ROW for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all selected rows are measured and agree, 1 if one failed or differs, 2 for an error."""
    parser = flags.Parser(
        prog="python -m experiments.results.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", help="names of rows or groups, or beginnings of names, separated by commas (all)"
    )
    parser.add_argument("--output", type=flags.path, default=FOLDER, help="folder of the table (experiments/results)")
    parser.add_argument("--workdir", type=flags.path, help="folder for intermediate files (a temporary one)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Measure the selected rows, and write their pages and the table."""
    known = rows()
    if args.list:
        print("\n".join(f"{name}{f' ({row.group})' if row.group else ''}: {row.title}" for name, row in known.items()))
        return DONE
    agree = True
    (args.output / "pages").mkdir(parents=True, exist_ok=True)
    for name in select(args.only, known):
        if known[name].measure is None:
            print(f"{name}: planned; {known[name].command}", flush=True)
            continue
        try:
            found = measure(name, known[name], args.workdir, args.debug)
        except MissingData as error:  # not a result: an earlier measurement stays
            print(f"{name}: not measured. {error}", flush=True)
            agree = False
            continue
        write_atomically(args.output / "pages" / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {tables.status(found)} ({found['seconds']:.0f} s)", flush=True)
        agree &= tables.status(found) == tables.AGREES
    tables.write(args.output, known)
    return DONE if agree else 1


def select(only: str, known: dict[str, Row]) -> list[str]:
    """Find the rows whose names are, or begin with, one of the given names, and those of groups; raise a ConfigError if there is none."""
    chosen: list[str] = []
    for part in filter(None, (part.strip() for part in only.split(","))):
        found = [name for name in known if name == part] or [
            name for name, row in known.items() if name.startswith(part) or row.group == part
        ]
        if not found:
            raise ConfigError(f"--only has {part!r}, which is not a row. {suggest(part, known)}")
        chosen += found
    return list(dict.fromkeys(chosen)) if only else [name for name, row in known.items() if not row.seeds]


def measure(name: str, row: Row, workdir: pathlib.Path | None, debug: bool) -> dict[str, Any]:
    """Measure one row: the content of its JSON file. An error becomes a part of it."""
    assert row.measure is not None
    found: dict[str, Any] = {"date": date.today().isoformat(), "commit": commit(), "machine": machine(), "figures": []}
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) if workdir is None else workdir.absolute() / name
            folder.mkdir(parents=True, exist_ok=True)
            found["figures"] = [dataclasses.asdict(figure) for figure in row.measure(folder)]
            if (folder / CURVE).is_file():
                found["curve"] = json.loads((folder / CURVE).read_text())
    except MissingData:
        raise
    except (UserError, OSError, ValueError, ArithmeticError, LookupError) as error:
        if debug:
            raise
        found["error"] = f"{type(error).__name__}: {error}"
    return found | {"seconds": round(time.monotonic() - begin, 1)}


def commit() -> str:
    """Return the commit of the working tree, with a mark if tracked files have changed; "" outside of a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    # The results themselves may change: every measurement of a series has the same commit.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results/pages")
    lines = [line for line in changed.splitlines() if not line.endswith("experiments/results/results.md")]
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if lines else "")


def machine() -> str:
    """Describe the processor and the versions that affect numbers."""
    from importlib.metadata import version

    cores = os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy"))
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {versions}, lm_research {__version__}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    cli.start(main)
