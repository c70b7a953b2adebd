"""`python -m launch.skypilot --name=bert --accelerator=v5litepod-16 --spot -- TRAIN ARGS > bert.yaml`.

Prints a SkyPilot task for one TPU slice on Google Cloud. `sky jobs launch bert.yaml --secret NAME` runs it as a managed job,
which SkyPilot starts again when its machines are pre-empted or training exits with 75 (saved). Run it in this checkout,
which SkyPilot copies to the machines.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from launch.description import TPU, Description, print_output
from launch.errors import LaunchError
from launch.slices import runtime
from launch.training import STOPPED, check_training, extras, install
from lm_research.common.flags import bounded

ENVIRONMENT = "~/lm_research_env"
FIELDS = (*(name for name in TPU if name != "slices"), "version", "labels")


def task(run: Description, restarts: int = 3) -> dict[str, Any]:
    """Return the task as a dict.

    Raises:
      LaunchError: SkyPilot cannot run it so, or training would refuse its arguments.
    """
    slice = run.slice
    if run.slices > 1:
        raise LaunchError(
            f"--slices={run.slices}: SkyPilot starts single slices. Use `python -m launch.tpu_vm` or `launch.gke`."
        )
    if not slice.names.runtime or not slice.is_default:
        raise LaunchError(f"--accelerator={slice}: SkyPilot's TPU VMs have no such type. Use `python -m launch.gke`.")
    if run.project:
        raise LaunchError(
            "--project: SkyPilot uses the project of gcloud. Set it with `gcloud config set project PROJECT`."
        )
    check_training(run.train)
    resources: dict[str, Any] = {
        "infra": f"gcp/{run.zone.rpartition('-')[0]}/{run.zone}" if run.zone else "gcp",
        "accelerators": f"tpu-{slice.accelerator_type}",
        "accelerator_args": {"runtime_version": runtime(run)},
        "use_spot": run.spot,
        "job_recovery": {"max_restarts_on_errors": restarts, "recover_on_exit_codes": [STOPPED]},
    }
    if run.labels:
        resources["labels"] = dict(label.split("=", 1) for label in run.labels)
    command = shlex.join(["-m", "lm_research.train", *run.train])
    return {
        "name": run.name,
        "workdir": ".",
        "num_nodes": 1,
        "resources": resources,
        **({"envs": run.variables("tpu")} if run.variables("tpu") else {}),
        **({"secrets": dict.fromkeys(run.secrets)} if run.secrets else {}),
        "setup": install(f".[{extras(run.train)}]", ENVIRONMENT) + "\n",
        "run": f"{ENVIRONMENT}/bin/python {command}\n",
    }


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.skypilot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--restarts", type=bounded(int, 0, 10**6), default=3, help="restarts after an error of training (3)"
    )
    return print_output(
        argv, parser, FIELDS, lambda run, flags: yaml.safe_dump(task(run, flags.restarts), sort_keys=False, width=120)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
