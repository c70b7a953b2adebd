"""`python -m lm_research.report RUN_OR_STUDY... [--output report.html]`: runs as a page to look at.

One file that needs no network: curves, summaries, configs side by side, samples, where the time went, a scaling law where sizes
differ, a sweep's pictures where a folder holds a study. Runs may still be going. Exit code 2 for a folder that is neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lm_research import cli
from lm_research.common import flags
from lm_research.common.disk import describe_os_error, write_atomically
from lm_research.errors import DONE, ConfigError
from lm_research.reporting import contents, page


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    parser = flags.Parser(prog="python -m lm_research.report", description="Writes a page about runs and studies.")
    parser.add_argument(
        "paths", nargs="+", type=flags.path, metavar="RUN_OR_STUDY", help="a run's --workdir, or a study's"
    )
    parser.add_argument(
        "--output", type=flags.path, help="the page (report.html, of one run or study inside its folder)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

    def report(arguments: argparse.Namespace) -> int:
        paths = arguments.paths
        material = contents.gather_report(paths)
        output = arguments.output or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
        try:
            write_atomically(output, page.render(material))
        except OSError as error:
            raise ConfigError(
                f"--output={output} cannot be written: {describe_os_error(error, output)}. Choose another file, or fix that."
            ) from error
        print(f"{output}: {len(material.runs)} runs, {len(material.studies)} studies. Open it in a browser.")
        return DONE

    return cli.parsed(parser, report, argv)


if __name__ == "__main__":
    cli.start(main)
