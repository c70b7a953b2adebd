"""The JobSet on GKE and the Slurm script match the run's description."""

from __future__ import annotations

import json
import pathlib
import subprocess

import msgspec
import pytest
from kubernetes_fields import check

from launch import gke, slurm

TRAIN = ["--", "--config=configs/bert_base.py", "--config.data.source=a file.txt", "--workdir=/mnt/run"]
GKE = ["--name=bert", "--image=registry/image:1"]


def printed(main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def refused(main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    own = captured.err.partition(" Config files in ")[0]  # a list that grows
    assert captured.out == "" and len(own) < 500
    return captured.err


def test_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--name=bert", "--slices=4", "--accelerator=8", "--secret=TOKEN", "--env=A=it's", "--xla_flag=xla_gpu_x=1"]
    text = printed(slurm.main, [*argv, *TRAIN], capsys)
    lines = text.splitlines()
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=1"} <= set(lines)
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue", "export XLA_FLAGS=--xla_gpu_x=1"} <= set(lines)
    assert "#SBATCH --export=PATH,HOME,USER,VIRTUAL_ENV,PYTHONPATH,TOKEN" in lines
    assert "'--config.data.source=a file.txt'" in text


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(75, 0, True), (75, 100, False), (0, 0, False), (1, 0, False)]
)
def test_slurm_requeues_what_was_saved(
    array: bool, code: int, restarts: int, requeued: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stand-ins for Slurm's commands. Requeuing the last task by its job number would requeue the whole array."""
    train = [*TRAIN[:-1], "--workdir=/mnt/run-{task}"] if array else TRAIN
    text = printed(
        slurm.main, ["--name=bert", "--accelerator=8", *(["--array=2-4%2"] if array else []), *train], capsys
    )
    assert ("#SBATCH --array=2-4%2" in text) == array and ("%A_%a.log" in text) == array
    (tmp_path / "srun").write_text(f"#!/bin/sh\necho srun $@\nexit {code}\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho scontrol $@\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": str(restarts)}
    if array:
        environment |= {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "4"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == code and not done.stderr
    assert (f"scontrol requeue {'71_4' if array else '71'}\n" in done.stdout) == requeued
    assert "srun --kill-on-bad-exit=1 python3 -m lm_research.train --config=configs/bert_base.py" in done.stdout
    assert ("--workdir=/mnt/run-4" if array else "--workdir=/mnt/run") in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "number of GPUs"),
        (["--accelerator=8", "--time=soon"], "not a time of Slurm"),
        (["--accelerator=8", "--array=a"], "not an array"),
        (["--accelerator=8", "--array=0-3"], "would write to one directory"),
        (["--accelerator=8", "--partition=a b"], "in no name of Slurm"),
        (["--accelerator=8", "--xla_flag=xla_tpu_x=1"], "for a GPU"),
    ],
)
def test_slurm_refuses(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(slurm.main, ["--name=bert", *flags, *TRAIN], capsys)


def test_gke(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = {"name": "bert", "image": "registry/image:1", "slices": 2, "spot": True, "secrets": ["TOKEN"]}
    (tmp_path / "run.json").write_text(json.dumps({**described, "train": TRAIN[1:]}))
    made = json.loads(printed(gke.main, [f"--run={tmp_path}/run.json", "--accelerator=v5e:4x8"], capsys))
    jobset = check(made)
    assert jobset.spec.failurePolicy.maxRestarts == 100
    (jobs,) = jobset.spec.replicatedJobs
    job = jobs.template.spec
    assert jobs.replicas == 2 and job.parallelism == job.completions == 8
    pod = job.template.spec
    assert pod.nodeSelector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod.containers
    assert container.command == ["python3", "-m", "lm_research.train", *TRAIN[1:]]
    assert container.resources.limits == container.resources.requests == {"google.com/tpu": 4}
    (secret,) = container.env
    assert (secret.name, secret.valueFrom.secretKeyRef.name, secret.valueFrom.secretKeyRef.key) == (
        "TOKEN",
        "bert",
        "TOKEN",
    )
    assert 75 not in job.podFailurePolicy.rules[0].onExitCodes.values


@pytest.mark.parametrize(
    ("accelerator", "label", "topology", "hosts", "chips"),
    [
        ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5litepod-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v4-32", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("v6e:1x1", "tpu-v6e-slice", "1x1", 1, 1),
        ("tpu7x:2x2x2", "tpu7x", "2x2x2", 2, 4),
    ],
)
def test_gke_counts_machines_and_chips(
    accelerator: str, label: str, topology: str, hosts: int, chips: int, capsys: pytest.CaptureFixture[str]
) -> None:
    jobset = check(json.loads(printed(gke.main, [*GKE, f"--accelerator={accelerator}", *TRAIN], capsys)))
    job = jobset.spec.replicatedJobs[0].template.spec
    pod = job.template.spec
    assert (job.parallelism, job.completions) == (hosts, hosts)
    assert pod.containers[0].resources.limits == {"google.com/tpu": chips}
    assert list(pod.nodeSelector.values()) == [label, topology]


def test_gke_queues_volumes_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--queue=tpu", "--priority=high", "--label=team=nlp", "--env=A=1", "--xla_flag=xla_tpu_x=1"]
    volumes = ["--volume=gs://bucket:/mnt/runs", "--volume=claim:/mnt/corpus", "--service_account=trainer"]
    jobset = check(json.loads(printed(gke.main, [*GKE, *flags, *volumes, "--restarts=3", *TRAIN], capsys)))
    assert jobset.metadata.labels == {
        "team": "nlp",
        "kueue.x-k8s.io/queue-name": "tpu",
        "kueue.x-k8s.io/priority-class": "high",
    }
    template = jobset.spec.replicatedJobs[0].template.spec.template
    assert template.metadata.annotations == {"gke-gcsfuse/volumes": "true"}
    bucket, claim = template.spec.volumes
    assert bucket.csi.volumeAttributes == {"bucketName": "bucket", "mountOptions": "implicit-dirs"}
    assert claim.persistentVolumeClaim.claimName == "claim"
    assert [mount.mountPath for mount in template.spec.containers[0].volumeMounts] == ["/mnt/runs", "/mnt/corpus"]
    assert {v.name: v.value for v in template.spec.containers[0].env} == {"A": "1", "LIBTPU_INIT_ARGS": "--xla_tpu_x=1"}
    assert template.spec.serviceAccountName == "trainer" and template.spec.priorityClassName == ""
    assert jobset.spec.failurePolicy.maxRestarts == 3
    without = check(json.loads(printed(gke.main, [*GKE, "--priority=high", *TRAIN], capsys)))
    assert without.spec.replicatedJobs[0].template.spec.template.spec.priorityClassName == "high"


def test_the_schema_refuses_what_is_no_jobset(capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(printed(gke.main, [*GKE, *TRAIN], capsys))
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 4
    with pytest.raises(msgspec.ValidationError, match=r"paralelism.*replicatedJobs"):
        check(made)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image="], "--image is missing"),
        (["--image=my image"], "has a space"),
        (["--accelerator=tpu-v5e-slice", "--topology=4x4"], "Did you mean"),
        (["--accelerator=tpu-v5-lite-podslice"], "Add --topology"),
        (["--accelerator=v5e:16x8"], "shorter sides first"),
        (["--accelerator=v5litepod-8", "--slices=2"], "slices of several machines"),
        (["--queue=My Queue"], "not a name in Kubernetes"),
        (["--volume=/mnt"], "CLAIM:/PATH"),
        (["--volume=gs://bucket:/mnt"], "needs --service_account"),
        (["--env=A=1", "--secret=A"], "set twice"),
    ],
)
def test_gke_refuses(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(gke.main, [*GKE, *flags, *TRAIN], capsys)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], "Nothing to run"),
        (["--", "--config=configs/none.py", "--workdir=/mnt/run"], "configs/none.py"),
        (["--", "--config=configs/bert_base.py", "--workdir=runs/bert"], "another directory on each machine"),
    ],
)
def test_training_is_checked_first(train: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(gke.main, [*GKE, *train], capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ('{"nam": "x"}', "unknown nam"),
        ('{"slices": 2}', "--name is missing"),
        ('{"name": "x", "env": "A=1"}', "env"),
    ],
)
def test_a_description_that_cannot_be_used(
    content: str, said: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert said in refused(gke.main, [f"--run={tmp_path}/run.json"], capsys)
