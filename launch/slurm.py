"""`python -m launch.slurm --name=bert --slices=4 --accelerator=8 [--secret=NAME] -- TRAIN ARGS > bert.sbatch`.

Prints an sbatch script that runs one process per node with all of the node's GPUs. Training finds its processes from
Slurm's variables. Two minutes before the time limit, or when the job is pre-empted, Slurm sends SIGTERM; all processes
save and exit with code 75, and the script requeues the job, which continues. With --array=0-4, each task is a run of its
own; {task} in an argument of training, for example --workdir=/shared/bert-{task}, is its number. Secrets are passed on
from the environment in which sbatch is called.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence

from launch.description import COMMON, Description, print_output
from launch.errors import LaunchError
from launch.training import check_training
from lm_research.common.flags import bounded

TASK = "{task}"
_TIME = r"([0-9]+-[0-9]+(:[0-9]+){0,2}|[0-9]+(:[0-9]+){0,2})"  # of sbatch(1), --time
_ARRAY = r"([0-9]+)(-[0-9]+(:[0-9]+)?)?(,[0-9]+(-[0-9]+(:[0-9]+)?)?)*(%[0-9]+)?"  # likewise, --array


def script(run: Description, flags: argparse.Namespace) -> str:
    """Return the text of the sbatch script.

    Raises:
      LaunchError: a value is not one of Slurm's, or training would refuse its arguments.
    """
    _check(run, flags)
    exports = ",".join(["PATH", "HOME", "USER", "VIRTUAL_ENV", "PYTHONPATH", *run.secrets])
    options = {
        "job-name": run.name,
        "nodes": run.slices,
        "ntasks-per-node": 1,
        "gpus-per-node": run.accelerator,
        "time": flags.time,
        "signal": "TERM@120",
        "requeue": None,
        "open-mode": "append",
        "output": f"{run.name}-{'%A_%a' if flags.array else '%j'}.log",
        "export": exports,
        **{name: value for name in ("array", "partition", "account") if (value := getattr(flags, name))},
    }
    lines = [f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in options.items()]
    lines += ["", *(f"export {name}={shlex.quote(value)}" for name, value in run.variables("gpu").items())]
    command = run.command().replace(TASK, "'\"$SLURM_ARRAY_TASK_ID\"'")  # shlex quotes every word with braces
    header = "\n".join(lines).rstrip()
    # The number of the last task's job is that of the whole array, so a task is named by its place in it.
    return f"""#!/bin/bash
{header}

# A task that fails ends the others, with SIGTERM (143) while they exit; 75 means saved: the same command continues.
srun --kill-on-bad-exit=1 {command}
code=$?
job="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}"
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {flags.restarts} ]; then
    scontrol requeue "${{job:-$SLURM_JOB_ID}}"
  fi
fi
exit "$code"
"""


def _check(run: Description, flags: argparse.Namespace) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", run.accelerator):
        raise LaunchError(
            f"--accelerator={run.accelerator}: on Slurm it is the number of GPUs per node, for example 8."
        )
    if not re.fullmatch(_TIME, flags.time):
        raise LaunchError(f"--time={flags.time} is not a time of Slurm. Write HOURS:MINUTES:SECONDS or DAYS-HOURS.")
    found = re.fullmatch(_ARRAY, flags.array)
    if flags.array and not found:
        raise LaunchError(
            f"--array={flags.array} is not an array of Slurm. Write for example 0-4, or 0-15%4 for four at a time."
        )
    places = [word for word in run.train if TASK in word]
    if flags.array and not any(word.startswith("--workdir=") for word in places):
        raise LaunchError(
            f"--array={flags.array}: all tasks would write to one directory. Put {TASK} into --workdir, for example --workdir=/shared/bert-{TASK}."
        )
    if places and not found:
        raise LaunchError(f"{places[0]}: {TASK} needs --array, for example --array=0-4.")
    for name in ("partition", "account"):
        if not re.fullmatch(r"[\w.,-]*", getattr(flags, name)):
            raise LaunchError(f"--{name}={getattr(flags, name)} has a character that is in no name of Slurm.")
    first = found[1] if found else ""
    check_training([word.replace(TASK, first) for word in run.train], shared=False)


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.slurm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--time", default="24:00:00", help="Slurm's time limit (24:00:00)")
    parser.add_argument("--array", default="", help="numbers of the tasks of an array, for example 0-4")
    parser.add_argument("--partition", default="", help="Slurm's partition")
    parser.add_argument("--account", default="", help="Slurm's account")
    parser.add_argument("--restarts", type=bounded(int, 0, 10**6), default=100, help="limit on requeues of a job (100)")
    return print_output(argv, parser, COMMON, script)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
