"""`python -m launch.tpu_vm {create,run,logs,stop,delete,ssh} --name=... --project=... --zone=... [-- TRAIN ARGS]`.

Run on Cloud TPU VMs through queued resources and the gcloud command line. `run` does everything: it creates the slices if
they do not exist, sends the code as a wheel, starts training on every worker, watches it, recreates pre-empted or broken
slices, and resumes the run, whose working directory must be a bucket or on storage that all workers can access. --dry_run
prints the commands. The last lines always list the machines that still exist and cost money.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from launch.description import TPU, add_flags, from_flags, split_train
from launch.errors import LaunchError, MachineError
from launch.gcloud import Gcloud, log
from launch.slices import HOME, Slices
from launch.training import STOPPED, build_wheel, check_training
from lm_research.common.flags import bounded

FINAL = (0, 2, 3)  # exit codes of training that a restart would only repeat: done, a user error, a non-finite loss
FIELDS = (
    *(*TPU, "version", "reserved", "flex_start", "valid_until", "network", "subnetwork", "internal_ips"),
    *("service_account", "labels", "data_disks"),
)


def run_to_completion(slices: Slices, restarts: int) -> int:
    """Create and set up the slices, run training and return its exit code; restart it when it is pre-empted or stops with 75.

    Machines that do not answer although they exist are replaced.

    Raises:
      LaunchError: too many restarts, or a permanent error.
    """
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        wheel, digest = build_wheel(pathlib.Path(folder))
        log(f"code: {wheel.name}, sha256 {digest}")
        for number in range(restarts + 1):
            slices.create()
            why = "was pre-empted"
            try:
                slices.set_up(wheel, digest)
                slices.start()
                code = 0 if slices.gcloud.dry_run else _watch(slices)
            except LaunchError as error:
                code = None
                if slices.state() == "ACTIVE":  # the machines still exist, so the cause is not pre-emption
                    broken += 1
                    if not isinstance(error, MachineError) or broken == slices.gcloud.tries:
                        raise
                    why = f"has a worker that does not answer ({error})"
                    slices.delete()
            else:
                broken = 0
            if code not in (None, STOPPED):
                return code
            log(
                f"{slices.run.name} {why if code is None else 'stopped after saving'}; restart {number + 1} of {restarts}"
            )
    raise LaunchError(
        f"{slices.run.name} has not finished after {restarts} restarts, the limit (--restarts). Run the same command again to continue."
    )


def _watch(slices: Slices) -> int | None:
    """Wait for training; return its exit code, or None if a slice was pre-empted."""
    while slices.state() == "ACTIVE":
        code = slices.exit_code()
        if code in (*FINAL, STOPPED):
            return code
        time.sleep(slices.poll)
        if code is not None and slices.state() == "ACTIVE":
            return code  # a real failure: the machines are not being pre-empted
    return None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line into flags and the arguments of training."""
    own, train = split_train(argv)
    parser = argparse.ArgumentParser(
        prog="launch.tpu_vm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    seconds = bounded(float, 0.0, 1e15)
    parser.add_argument("command", choices=("create", "run", "logs", "stop", "delete", "ssh"))
    add_flags(parser, FIELDS)
    parser.add_argument("--dry_run", action="store_true", help="print the exact commands and run none")
    parser.add_argument(
        "--tries", type=bounded(int, 1, 1000), default=6, help="attempts for a command with a transient error (6)"
    )
    parser.add_argument(
        "--wait", type=seconds, default=5.0, help="seconds before the second attempt; doubles each time (5)"
    )
    parser.add_argument("--poll", type=seconds, default=30.0, help="seconds between two checks of the machines (30)")
    parser.add_argument("--patience", type=seconds, default=86400.0, help="seconds to wait for capacity (a day)")
    parser.add_argument(
        "--restarts",
        type=bounded(int, 0, 10**6),
        default=100,
        help="limit on restarts of a run that was stopped or pre-empted (100)",
    )
    parser.add_argument(
        "--delete_after", action="store_true", help="delete the machines when `run` ends, for whatever reason"
    )
    parser.add_argument("--worker", default="0", help="number of the worker, for ssh and logs (0)")
    return parser.parse_args(own), train


def act(flags: argparse.Namespace, slices: Slices) -> int:
    """Run the command `flags.command` and return the exit code."""
    run, gcloud = slices.run, slices.gcloud
    if flags.command == "create":
        slices.create()
    elif flags.command == "stop":
        slices.stop()
    elif flags.command == "delete":
        slices.delete()
    elif flags.command in ("ssh", "logs"):
        follow = [f"--command=tail -n 100 -F {HOME}/log.txt"] if flags.command == "logs" else []
        place = [run.nodes[0], f"--worker={flags.worker}", *follow, *slices.ssh_flags(), *slices.location]
        return gcloud.run_through(["compute", "tpus", "tpu-vm", "ssh", *place])
    else:
        if not run.train:
            check_training(run.train)  # raises what is missing
        missing = [name for name in run.secrets if name not in os.environ]
        if missing:
            raise LaunchError(
                f"--secret names variables that are not set here: {', '.join(missing)}. Export them first."
            )
        try:
            return run_to_completion(slices, flags.restarts)
        finally:
            if flags.delete_after:
                _delete_after(slices)
    return 0


def _delete_after(slices: Slices) -> None:
    """Delete the machines; a failure is logged, so that the error of the run itself is not lost."""
    try:
        slices.delete()
    except LaunchError as error:
        log(f"WARNING: the machines of {slices.run.name} could not be deleted ({error}).")


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    flags, train = parse(argv)
    slices = None
    try:
        slices = Slices(
            from_flags(flags, train), Gcloud(flags.dry_run, flags.tries, flags.wait), flags.poll, flags.patience
        )
        return act(flags, slices)
    except LaunchError as error:
        log(f"error: {error}")
        return 2
    finally:
        if slices and flags.command not in ("ssh", "logs"):
            slices.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
