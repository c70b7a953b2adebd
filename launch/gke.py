"""`python -m launch.gke --name=bert --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 -- TRAIN ARGS > bert.json`.

Prints a JobSet manifest (jobset.x-k8s.io) for TPU slices on GKE, as JSON, which `kubectl apply -f bert.json` reads: one job
per slice and one pod per machine. Training finds its processes from the variables that GKE sets. Exit code 75 (saved,
pre-empted) and lost machines restart the whole set; a user error (2) or a non-finite loss (3) ends it. Secrets are read
from the Kubernetes Secret with the run's name: `kubectl create secret generic bert --from-env-file=FILE`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from launch.description import Description, LaunchError, print_output
from lm_research.common.flags import bounded

FINAL_CODES = (2, 3)  # errors that a restart would only repeat
GRACE = 120  # seconds from SIGTERM until a pod is killed; training saves in this time


def manifest(run: Description, restarts: int = 100) -> dict[str, Any]:
    """Return the JobSet as a dict.

    Raises:
      LaunchError: there is no image.
    """
    if not run.image:
        raise LaunchError("--image is missing: a container with this package and its tpu extra installed.")
    if not run.accelerator.startswith("tpu"):
        raise LaunchError(
            f"--accelerator={run.accelerator}: GKE's names begin with tpu, for example tpu-v5-lite-podslice."
        )

    def key(name):
        return {"secretKeyRef": {"name": run.name, "key": name}}

    container = {
        "name": "train",
        "image": run.image,
        "command": ["python3", "-m", "lm_research.train", *run.train],
        "env": [{"name": name, "valueFrom": key(name)} for name in run.secrets],
        "ports": [{"containerPort": port} for port in (8471, 8476, 8080)],
        "resources": {"requests": {"google.com/tpu": run.chips}, "limits": {"google.com/tpu": run.chips}},
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": run.accelerator,
        "cloud.google.com/gke-tpu-topology": run.topology,
        **({"cloud.google.com/gke-spot": "true"} if run.spot else {}),
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "containers": [container],
    }
    fail = {"containerName": "train", "operator": "In", "values": list(FINAL_CODES)}
    job = {
        "parallelism": run.hosts,
        "completions": run.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": fail}]},
        "template": {"spec": pod},
    }
    once = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": run.name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [once]},
            "replicatedJobs": [{"name": "slice", "replicas": run.slices, "template": {"spec": job}}],
        },
    }


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.gke", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--restarts", type=bounded(int, 0, 10**6), default=100, help="limit on restarts of the set")
    return print_output(argv, parser, lambda run, flags: json.dumps(manifest(run, flags.restarts), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
