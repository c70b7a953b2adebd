"""`python -m launch.gke --name=bert --image=IMAGE --accelerator=v5e:4x4 -- TRAIN ARGS > bert.json`.

Prints a JobSet manifest (jobset.x-k8s.io) for TPU slices on GKE, as JSON, which `kubectl apply -f bert.json` reads: one job
per slice and one pod per machine. Training finds its processes from the variables that GKE sets. Exit code 75 (saved,
pre-empted) and lost machines restart the whole set; a user error (2) or a non-finite loss (3) ends it. Secrets are read
from the Kubernetes Secret with the run's name: `kubectl create secret generic bert --from-env-file=FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from launch.description import COMMON, Description, print_output
from launch.errors import LaunchError
from launch.training import check_training
from lm_research.common.documents import short
from lm_research.common.flags import bounded

FINAL_CODES = (2, 3)  # errors that a restart would only repeat
GRACE = 120  # seconds from SIGTERM until a pod is killed; training saves in this time
PORTS = (8471, 8476, 8080)  # of libtpu, of the coordinator, and of slices among each other
FIELDS = (*COMMON, "topology", "chips", "spot", "image", "service_account", "labels", "queue", "priority", "volumes")


def manifest(run: Description, restarts: int = 100) -> dict[str, Any]:
    """Return the JobSet as a dict.

    Raises:
      LaunchError: there is no image, no such slice, or an option cannot be used.
    """
    _check(run)
    slice = run.slice
    fail = {"containerName": "train", "operator": "In", "values": list(FINAL_CODES)}
    job = {
        "parallelism": slice.hosts,
        "completions": slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": fail}]},
        "template": _pod(run),
    }
    once = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    labels = dict(label.split("=", 1) for label in run.labels)
    if run.queue:
        labels["kueue.x-k8s.io/queue-name"] = run.queue
        labels |= {"kueue.x-k8s.io/priority-class": run.priority} if run.priority else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": run.name,
            **({"labels": labels} if labels else {}),
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [once]},
            "replicatedJobs": [{"name": "slice", "replicas": run.slices, "template": {"spec": job}}],
        },
    }


def _pod(run: Description) -> dict[str, Any]:
    """Return the pod template."""
    slice = run.slice
    volumes, mounts, annotations = [], [], {}
    for number, text in enumerate(run.volumes):
        source, path = split_volume(text)
        name = f"volume-{number}"
        mounts.append({"name": name, "mountPath": path})
        if source.startswith("gs://"):
            annotations["gke-gcsfuse/volumes"] = "true"
            bucket = {"bucketName": source.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
            volumes.append({"name": name, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}})
        else:
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": source}})
    secrets: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": run.name, "key": name}}} for name in run.secrets
    ]
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in run.variables("tpu").items()]
    container = {
        "name": "train",
        "image": run.image,
        "command": ["python3", "-m", "lm_research.train", *run.train],
        "env": env + secrets,
        "ports": [{"containerPort": port} for port in PORTS],
        "resources": {kind: {"google.com/tpu": slice.chips_per_host} for kind in ("requests", "limits")},
        **({"volumeMounts": mounts} if mounts else {}),
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slice.names.label,
        "cloud.google.com/gke-tpu-topology": slice.topology,
        **({"cloud.google.com/gke-spot": "true"} if run.spot else {}),
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "containers": [container],
        **({"serviceAccountName": run.service_account} if run.service_account else {}),
        **({"priorityClassName": run.priority} if run.priority and not run.queue else {}),
        **({"volumes": volumes} if volumes else {}),
    }
    return {**({"metadata": {"annotations": annotations}} if annotations else {}), "spec": spec}


def split_volume(text: str) -> tuple[str, str]:
    """Split CLAIM:/PATH or gs://BUCKET:/PATH.

    Raises:
      LaunchError: it is neither.
    """
    source, _, path = text.rpartition(":")
    claim, bucket = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
    if not (re.fullmatch(f"{claim}|{bucket}", source) and re.fullmatch(r"/[^:\s]+", path)):
        raise LaunchError(
            f"--volume={short(text)}: write CLAIM:/PATH for a PersistentVolumeClaim, or gs://BUCKET:/PATH for a whole bucket through "
            "Cloud Storage FUSE."
        )
    return source, path


def _check(run: Description) -> None:
    if not run.image:
        raise LaunchError("--image is missing: a container with this package and its tpu extra installed.")
    if re.search(r"\s", run.image):
        raise LaunchError(f"--image={run.image} has a space. Write REGISTRY/IMAGE:TAG.")
    slice = run.slice
    if run.slices > 1 and slice.hosts == 1:
        raise LaunchError(
            f"--slices={run.slices}: GKE connects slices of several machines only, and {slice} is one machine. Use a larger slice."
        )
    for flag in ("queue", "priority", "service_account"):
        value = getattr(run, flag)
        if value and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", value):
            raise LaunchError(
                f"--{flag}={value} is not a name in Kubernetes: lower-case letters, digits, dashes and dots."
            )
    if any(text.startswith("gs://") for text in run.volumes) and not run.service_account:
        raise LaunchError(
            "--volume with a bucket needs --service_account: the Kubernetes service account that may read and write the bucket "
            "through Workload Identity Federation."
        )
    check_training(run.train)


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.gke", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--restarts", type=bounded(int, 0, 10**6), default=100, help="limit on restarts of the set (100)"
    )
    return print_output(
        argv, parser, FIELDS, lambda run, flags: json.dumps(manifest(run, flags.restarts), indent=2) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
