"""`python -m lm_research.report RUN_OR_STUDY... [--output report.html]`: an HTML report of runs and studies.

The page is one file that needs no network: curves, summaries, configs side by side, samples, time by activity, a scaling law if model
sizes differ, and plots of sweeps. Runs may still be in progress. A directory that is neither a run nor a study gives exit code 2.
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
    """Run the command and return the exit code."""
    parser = flags.Parser(prog="python -m lm_research.report", description="Write an HTML report of runs and studies.")
    parser.add_argument(
        "paths", nargs="+", type=flags.path, metavar="RUN_OR_STUDY", help="a run's --workdir, or a study's"
    )
    parser.add_argument(
        "--output", type=flags.path, help="output file (report.html, inside the directory of a single run or study)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")

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
