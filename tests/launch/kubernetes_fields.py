"""Types of the Kubernetes objects that `launch.gke` prints, with only the fields it uses; any other field is refused.

Written after JobSet's CRD (kubernetes-sigs/jobset, config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of August 2026,
which contains batch/v1 Job and core/v1 Pod); the labels and annotations are those of JobSet, Kueue and GKE.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Label = Annotated[str, Meta(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]
Annotation = Literal["alpha.jobset.sigs.k8s.io/exclusive-topology", "gke-gcsfuse/volumes"]
Selector = Literal[
    "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology", "cloud.google.com/gke-spot"
]


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class Metadata(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    annotations: dict[Annotation, str] = {}
    labels: dict[str, Label] = {}


class SecretKey(Strict):
    name: Name
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKey


class Variable(Strict):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None


class Port(Strict):
    containerPort: Annotated[int, Meta(ge=1, le=65535)]


class Resources(Strict):
    requests: dict[Literal["google.com/tpu"], Count]
    limits: dict[Literal["google.com/tpu"], Count]


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Meta(pattern="^[^:]+$")]


class Container(Strict):
    name: Name
    image: str
    command: list[str]
    env: list[Variable]
    ports: list[Port]
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Name


class Driver(Strict):
    driver: Literal["gcsfuse.csi.storage.gke.io"]
    volumeAttributes: dict[Literal["bucketName", "mountOptions"], str]


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    csi: Driver | None = None


class PodSpec(Strict):
    restartPolicy: Literal["Never"]  # podFailurePolicy requires it
    terminationGracePeriodSeconds: Count
    nodeSelector: dict[Selector, Label]
    containers: Annotated[list[Container], Meta(min_length=1)]
    serviceAccountName: Name = "default"
    priorityClassName: str = ""
    volumes: list[Volume] = []


class PodMetadata(Strict):
    annotations: dict[Annotation, str] = {}


class Pod(Strict):
    spec: PodSpec
    metadata: PodMetadata = PodMetadata()


class ExitCodes(Strict):
    containerName: Name
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Meta(ge=1, le=255)]], Meta(min_length=1)]


class PodRule(Strict):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: ExitCodes


class PodFailurePolicy(Strict):
    rules: list[PodRule]


class JobSpec(Strict):
    parallelism: Count
    completions: Count
    completionMode: Literal["Indexed"]
    backoffLimit: Count
    podFailurePolicy: PodFailurePolicy
    template: Pod


class Job(Strict):
    spec: JobSpec


class ReplicatedJob(Strict):
    name: Name
    replicas: Count
    template: Job


class Rule(Strict):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[Literal["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded"]]


class FailurePolicy(Strict):
    maxRestarts: Count
    rules: list[Rule]


class JobSetSpec(Strict):
    failurePolicy: FailurePolicy
    replicatedJobs: list[ReplicatedJob]


class JobSet(Strict):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


def check(manifest: dict[str, Any]) -> JobSet:
    """Return the manifest as a JobSet; raise a msgspec.ValidationError with the path if it is none."""
    jobset = msgspec.convert(manifest, JobSet)
    for job in jobset.spec.replicatedJobs:
        pod = job.template.spec.template.spec
        mounted = [mount.name for container in pod.containers for mount in container.volumeMounts]
        assert sorted(mounted) == sorted(volume.name for volume in pod.volumes)
        assert len({mount.mountPath for container in pod.containers for mount in container.volumeMounts}) == len(
            mounted
        )
    return jobset
