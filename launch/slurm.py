"""`python -m launch.slurm --name=bert --slices=4 --accelerator=8 [--secret=NAME] -- TRAIN ARGS > bert.sbatch`.

An sbatch script: one process a node with all its GPUs. Training finds its processes from Slurm's variables. Two minutes
before the time limit, or when the job is pre-empted, Slurm sends SIGTERM; training saves on all processes and ends with
75, and the script puts the job back into the queue. Secrets are handed on from the environment that sbatch is called in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.description import Description, LaunchError, print_made


def script(run: Description, time_limit: str) -> str:
    """The text of the sbatch script.

    Raises:
      LaunchError: the accelerator is no number of GPUs.
    """
    if not run.accelerator.isdigit():
        raise LaunchError(
            f"--accelerator={run.accelerator}: on Slurm it is the number of GPUs of a node, for example 8."
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

# One task that fails ends the others, with SIGTERM (143) while they leave; 75 means saved: the same command goes on.
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
    return print_made(argv, parser, lambda run, flags: script(run, flags.time))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
