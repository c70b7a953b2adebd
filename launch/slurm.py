"""`python -m launch.slurm --name=bert --slices=4 --accelerator=8 [--secret=NAME] -- TRAIN ARGS > bert.sbatch`.

Prints an sbatch script that runs one process per node with all of the node's GPUs. Training finds its processes from
Slurm's variables. Two minutes before the time limit, or when the job is pre-empted, Slurm sends SIGTERM; all processes
save and exit with code 75, and the script requeues the job. Secrets are passed on from the environment in which sbatch
is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.description import Description, LaunchError, print_output


def script(run: Description, time_limit: str) -> str:
    """Return the text of the sbatch script.

    Raises:
      LaunchError: the accelerator is not a number of GPUs.
    """
    if not run.accelerator.isdigit():
        raise LaunchError(
            f"--accelerator={run.accelerator}: on Slurm it is the number of GPUs per node, for example 8."
        )
    exports = ",".join(["PATH", "HOME", "USER", "VIRTUAL_ENV", "PYTHONPATH", *run.secrets])
    return f"""#!/bin/bash
#SBATCH --job-name={run.name}
#SBATCH --nodes={run.slices}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={run.accelerator}
#SBATCH --time={time_limit}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={run.name}-%j.log
#SBATCH --export={exports}

# A task that fails ends the others, with SIGTERM (143) while they exit; 75 means saved: the same command continues.
srun --kill-on-bad-exit=1 {run.command()}
code=$?
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.slurm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--time", default="24:00:00", help="Slurm's time limit")
    return print_output(argv, parser, lambda run, flags: script(run, flags.time))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
