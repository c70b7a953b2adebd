"""The Slurm script and the JobSet match the run's description."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

from launch import gke, slurm

TRAIN = ["--", "--config=configs/bert_base.py", "--config.data.source=a file.txt", "--workdir=/mnt/run"]


def test_slurm(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["--name=bert", "--slices=4", "--accelerator=8", "--secret=TOKEN", *TRAIN]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=1"} <= set(lines)
    assert "#SBATCH --export=PATH,HOME,USER,VIRTUAL_ENV,PYTHONPATH,TOKEN" in lines
    assert "'--config.data.source=a file.txt'" in text
    assert slurm.main(["--name=bert", *TRAIN]) == 2
    assert "number of GPUs" in capsys.readouterr().err
    # Run with stand-ins for Slurm's commands: 75 requeues the job, anything else does not.
    for code, requeued in ((75, True), (0, False), (1, False)):
        (tmp_path / "srun").write_text(f"#!/bin/sh\necho srun $@\nexit {code}\n")
        (tmp_path / "scontrol").write_text("#!/bin/sh\necho scontrol $@\n")
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "71"}
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
        assert done.returncode == code
        assert ("scontrol requeue 71" in done.stdout) == requeued
        assert "srun --kill-on-bad-exit=1 python3 -m lm_research.train --config=configs/bert_base.py" in done.stdout


def test_gke(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = {
        "name": "bert",
        "image": "registry/image:1",
        "accelerator": "tpu-v5-lite-podslice",
        "slices": 2,
        "spot": True,
    }
    (tmp_path / "run.json").write_text(json.dumps({**described, "secrets": ["TOKEN"], "train": TRAIN[1:]}))
    assert gke.main([f"--run={tmp_path}/run.json", "--topology=4x8", "--hosts=8"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kind"] == "JobSet" and made["spec"]["failurePolicy"]["maxRestarts"] == 100
    (jobs,) = made["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert jobs["replicas"] == 2 and job["parallelism"] == job["completions"] == 8
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python3", "-m", "lm_research.train", *TRAIN[1:]]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["env"] == [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "bert", "key": "TOKEN"}}}]
    assert 75 not in job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ('{"nam": "x"}', "unknown nam"), ('{"slices": 2}', "--name is missing")],
)
def test_a_description_that_cannot_be_used(
    content: str, said: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert gke.main([f"--run={tmp_path}/run.json"]) == 2
    assert said in capsys.readouterr().err
