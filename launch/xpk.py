"""`python -m launch.xpk --name=bert --cluster=CLUSTER --image=IMAGE --accelerator=v5litepod-16 -- TRAIN ARGS`.

Prints the command of XPK (Accelerated Processing Kit) that runs training on a GKE cluster made by XPK. Exit code 75 (saved)
restarts the run. XPK keeps environment variables in the manifest, so it takes no secrets: use `launch.gke` for those.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from launch.description import TPU, Description, print_output
from launch.errors import LaunchError
from launch.gke import GRACE
from launch.training import STOPPED, check_training
from lm_research.common.flags import bounded

FIELDS = (*(name for name in TPU if name != "secrets"), "cluster", "image", "priority")
PRIORITIES = ("very-low", "low", "medium", "high", "very-high")


def command(run: Description, restarts: int = 100) -> str:
    """Return the command line, in one line.

    Raises:
      LaunchError: XPK does not have such slices, something is missing, or training would refuse its arguments.
    """
    slice = run.slice
    for flag in ("cluster", "image", "project", "zone"):
        if not getattr(run, flag):
            raise LaunchError(f"--{flag} is missing. XPK needs --cluster, --image, --project and --zone.")
    if run.secrets:
        raise LaunchError("XPK takes no secrets: it keeps variables in the manifest. Use `python -m launch.gke`.")
    if run.priority and run.priority not in PRIORITIES:
        raise LaunchError(f"--priority={run.priority} is not one of XPK's: {', '.join(PRIORITIES)}.")
    if slice.chip == "v5e" and slice.chips < 8:
        raise LaunchError(f"--accelerator={slice}: XPK has v5e slices of 8 chips and more. Use `python -m launch.gke`.")
    check_training(run.train)
    words = [
        "xpk workload create",
        f"--workload={run.name}",
        f"--cluster={run.cluster}",
        f"--project={run.project}",
        f"--zone={run.zone}",
        f"--tpu-type={slice.accelerator_type if slice.is_default else f'{slice.names.prefix}-{slice.topology}'}",
        f"--num-slices={run.slices}",
        f"--docker-image={run.image}",
        f"--max-restarts={restarts}",
        f"--restart-on-exit-codes={STOPPED}",
        f"--termination-grace-period-seconds={GRACE}",
        *(f"--env={shlex.quote(f'{name}={value}')}" for name, value in run.variables("tpu").items()),
        *([f"--priority={run.priority}"] if run.priority else []),
        *(["--spot"] if run.spot else []),
        *(["--no-use-parallel-containers"] if slice.chip == "tpu7x" else []),  # one process per machine
        f"--command={shlex.quote(run.command())}",
    ]
    return " ".join(words)


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.xpk", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--restarts", type=bounded(int, 0, 10**6), default=100, help="limit on restarts of the run (100)"
    )
    return print_output(argv, parser, FIELDS, lambda run, flags: command(run, flags.restarts) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
