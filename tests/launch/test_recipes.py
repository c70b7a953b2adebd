"""Recipes for SkyPilot, XPK and Compute Engine have the fields and flags of those tools.

Fields of SkyPilot 0.14.1 (sky/utils/schemas.py) and flags of XPK 1.16.0 (xpk/parser/workload.py); what these tests compare
with was accepted by both.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess

import pytest
import yaml
from test_manifests import printed, refused

from launch import compute_engine, skypilot, xpk

TRAIN = ["--", "--config=configs/quickstart.py", "--workdir=/mnt/runs/bert"]
COMMAND = "-m lm_research.train --config=configs/quickstart.py --workdir=/mnt/runs/bert"
PLACE = ["--name=bert", "--project=my-project", "--zone=us-central1-c"]
XPK = [*PLACE, "--cluster=pod", "--image=registry/image:1"]


def test_skypilot(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--accelerator=v6e-16", "--zone=us-east5-b", "--spot", "--secret=TOKEN", "--env=A=1", "--label=team=nlp"]
    task = yaml.safe_load(printed(skypilot.main, ["--name=bert", *flags, *TRAIN], capsys))
    assert task.pop("setup").endswith('~/lm_research_env/bin/python ".[tpu]"\n')
    assert task == {
        "name": "bert",
        "workdir": ".",
        "num_nodes": 1,
        "resources": {
            "infra": "gcp/us-east5/us-east5-b",
            "accelerators": "tpu-v6e-16",
            "accelerator_args": {"runtime_version": "v2-alpha-tpuv6e"},
            "use_spot": True,
            "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]},
            "labels": {"team": "nlp"},
        },
        "envs": {"A": "1"},
        "secrets": {"TOKEN": None},
        "run": f"~/lm_research_env/bin/python {COMMAND}\n",
    }
    assert "no such type" in refused(skypilot.main, ["--name=bert", "--accelerator=tpu7x:2x2x2", *TRAIN], capsys)


def test_xpk(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--accelerator=tpu7x:2x2x2", "--slices=2", "--env=A=b c", "--priority=high", "--spot", "--restarts=5"]
    words = shlex.split(printed(xpk.main, [*XPK, *flags, *TRAIN], capsys))
    assert words[:3] == ["xpk", "workload", "create"]
    assert set(words[3:]) == {
        *("--workload=bert", "--cluster=pod", "--project=my-project", "--zone=us-central1-c", "--tpu-type=tpu7x-16"),
        *("--num-slices=2", "--docker-image=registry/image:1", "--max-restarts=5", "--restart-on-exit-codes=75"),
        *("--termination-grace-period-seconds=120", "--env=A=b c", "--priority=high", "--spot"),
        *("--no-use-parallel-containers", f"--command=python3 {COMMAND}"),
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (PLACE, "--cluster is missing"),
        ([*XPK, "--accelerator=v5litepod-4"], "8 chips and more"),
        ([*XPK, "--accelerator=v5e-16"], "is called v5litepod-16"),
        ([*XPK, "--priority=urgent"], "very-high"),
    ],
)
def test_xpk_refuses(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(xpk.main, [*argv, *TRAIN], capsys)


def test_compute_engine(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script runs with a gcloud that prints its arguments and knows two machines; worker 0 coordinates."""
    flags = ["--accelerator=tpu7x:2x2x2", "--spot", "--secret=TOKEN", "--env=A=b c", "--subnetwork=net"]
    (tmp_path / "bert.sh").write_text(printed(compute_engine.main, [*PLACE, *flags, *TRAIN], capsys))
    (tmp_path / "gcloud").write_text(f"""#!/bin/bash
case "$*" in
  *list-instances*) printf "bert-a\\nbert-b\\n" ;;
  *"cat lm_research_run/number"*) case "$*" in *bert-a*) echo 1 ;; *) echo 0 ;; esac ;;
  *"instances describe bert-b"*) echo 10.0.0.7 ;;
  *"compute scp"*) mkdir -p {tmp_path}/sent && cp "${{@:4:$#-8}}" {tmp_path}/sent ;;
esac
echo "$*" >> {tmp_path}/calls
""")
    (tmp_path / "python3").write_text('#!/bin/sh\ntouch "$7/lm_research-1-py3-none-any.whl"\n')
    for name in ("gcloud", "python3"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TOKEN": "hush it's", "HOME": str(tmp_path)}

    def bash(command: str) -> str:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", str(tmp_path / "bert.sh"), command], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "calls").read_text()

    policy, template, group = bash("create").splitlines()
    assert policy.startswith("compute resource-policies create workload-policy bert --type=HIGH_THROUGHPUT")
    assert "--accelerator-topology=2x2x2" in policy and "--region=us-central1" in policy
    assert {"--machine-type=tpu7x-standard-4t", "--provisioning-model=SPOT"} <= set(template.split())
    assert "--image-family=ubuntu-accel-2404-amd64-tpu-tpu7x --image-project=ubuntu-os-accelerator-images" in template
    assert "--subnet=projects/my-project/regions/us-central1/subnetworks/net" in template
    assert "--size=2" in group and "resourcePolicies/bert" in group
    calls = bash("run")
    assert calls.count("bash start.sh $(cat number) 10.0.0.7") == 2 and "hush" not in calls
    sent = {path.name: path.read_text() for path in (tmp_path / "sent").iterdir()}
    assert json.loads(sent["config.json"])["train"]["num_steps"] > 0
    assert sent["secrets.sh"] == "export TOKEN=hush\\ it\\'s\n"
    assert "export A='b c'" in sent["start.sh"]
    assert '--coordinator="$2:8476" --num_processes=2 --process_id="$1"' in sent["start.sh"]
    assert [line.split()[1:3] for line in bash("delete").splitlines()] == [
        ["instance-groups", "managed"],
        ["instance-templates", "delete"],
        ["resource-policies", "delete"],
    ]
    assert "groups of v5p" in refused(compute_engine.main, [*PLACE, "--accelerator=v4-8", *TRAIN], capsys)
