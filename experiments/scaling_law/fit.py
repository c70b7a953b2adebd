"""`python -m experiments.scaling_law.fit runs/scaling_law`: the law through a study's runs, with intervals, in Markdown.

The fit is the report's (lm_research/reporting/scaling.py): L(N, D) = E + A / N^alpha + B / D^beta. N counts all parameters and D the
tokens read, without padding.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from lm_research import cli
from lm_research.errors import DONE, DataError
from lm_research.reporting.contents import scaling_law
from lm_research.reporting.runs import read_run
from lm_research.reporting.studies import read_study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.scaling_law.fit", description=__doc__)
    parser.add_argument("study", type=pathlib.Path, help="folder with study.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_args(argv)

    def show() -> int:
        print(law(options.study))
        return DONE

    return cli.guarded(show, debug=options.debug)


def law(directory: pathlib.Path) -> str:
    """Return the table of the law and the runs it was fitted to; raise a DataError if no law can be fitted."""
    study = read_study(directory)
    found = scaling_law([read_run(directory / trial["run"], f"trial {trial['number']}") for trial in study.measured])
    if found is None or "refusal" in found:
        raise DataError(f"{directory}: {found['refusal'] if found else 'its finished runs are of one size.'}")
    lines = [f"{found['formula']}, off by {found['residual']:.2%} (root mean square)", ""]
    lines += ["| | value | 90% interval |", "|---|---|---|"]
    lines += [f"| {name} | {value:.4g} | {low:.4g} to {high:.4g} |" for name, value, low, high in found["rows"]]
    lines += ["", "| run | N | D | loss, nats |", "|---|---|---|---|"]
    lines += [f"| {name} | {n:,.0f} | {d:,.0f} | {loss:.4f} |" for name, n, d, loss in found["points"]]
    return "\n".join([*lines, "", *found["notes"]]).rstrip()


if __name__ == "__main__":
    cli.start(main)
