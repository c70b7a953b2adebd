"""TPU VMs through a gcloud that keeps a cloud in a file: which calls are made, what is retried, and what is left behind."""

from __future__ import annotations

import json
import pathlib
import stat
import sys
from typing import Any

import pytest

from launch import tpu_vm

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PLACE = ["--name=run", "--project=p", "--zone=z", "--wait=0.01", "--poll=0.01", "--tries=3"]
TRAIN = ["--", f"--config={ROOT}/configs/quickstart.py", "--config.train.num_steps=9", "--workdir=/mnt/all/run"]
CAPACITY, REFUSED = "ERROR: RESOURCE_EXHAUSTED: no more capacity", "ssh: connect to host 1.2.3.4: Connection refused"


class Cloud:
    """The fake cloud's file."""

    def __init__(self, path: pathlib.Path, **values: Any) -> None:
        self.path = path
        start = {"calls": [], "faults": [], "state": None, "states": [], "nodes": {}, "codes": ["0"], "files": {}}
        path.write_text(json.dumps(start | values))

    def __getitem__(self, name: str) -> Any:
        return json.loads(self.path.read_text())[name]

    def commands(self) -> list[str]:
        return [call[3] for call in self["calls"] if call[3] != "list"]


@pytest.fixture
def cloud(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text(f"#!{sys.executable}\n" + (HERE / "fake_gcloud.py").read_text())
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_CLOUD", str(tmp_path / "cloud.json"))
    wheel = tmp_path / "wheel" / "lm_research-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_text("wheel")
    monkeypatch.setattr(tpu_vm, "build_wheel", lambda folder: (wheel, "abc123"))
    return lambda **values: Cloud(tmp_path / "cloud.json", **values)


def test_a_run_from_creation_to_its_end(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(codes=["running", "0"])
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    create = next(call for call in made["calls"] if call[3] == "create")
    assert create == [
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "run",
        "--node-id=run",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--project=p",
        "--zone=z",
    ]
    commands = [argument for call in made["calls"] for argument in call if argument.startswith("--command=")]
    assert any("'abc123  lm_research-1-py3-none-any.whl' | sha256sum --check" in command for command in commands)
    assert any("-m lm_research.train --config=config.json --workdir=/mnt/all/run" in command for command in commands)
    assert json.loads(made["files"]["config.json"][0])["train"]["num_steps"] == 9
    shown = capsys.readouterr().err
    assert "these still exist and cost money: queued-resources run ACTIVE; tpu-vm run READY" in shown
    assert "runner" not in shown  # another user's machine
    assert "delete with: python -m launch.tpu_vm delete --name=run --slices=1 --project=p --zone=z" in shown


def test_preempted_spot_slices_are_recreated(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """Preempted once, stopped with 75 once: one more creation, the same training command three times."""
    made = cloud(codes=["running", "PREEMPT", "75", "0"])
    assert tpu_vm.main(["run", *PLACE, "--spot", "--slices=2", "--delete_after", *TRAIN]) == 0
    assert made.commands().count("create") == 2 and made.commands().count("delete") == 2
    create = next(call for call in made["calls"] if call[3] == "create")
    assert {"--node-count=2", "--node-prefix=run", "--spot"} <= set(create)
    starts = [call for call in made["calls"] if any("setsid" in argument for argument in call)]
    assert [call[4] for call in starts] == ["run-0", "run-1"] * 3
    assert len({tuple(call[5:]) for call in starts}) == 1
    shown = capsys.readouterr().err
    assert "run was pre-empted; restart 1" in shown and "run stopped after saving; restart 2" in shown
    assert "no machines of run exist anymore" in shown


def test_restarts_have_a_limit(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud(codes=["75", "75", "75"])
    assert tpu_vm.main(["run", *PLACE, "--restarts=1", *TRAIN]) == 2
    assert "run has not finished after 1 restarts" in capsys.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_failure_of_training_is_returned_and_not_repeated(cloud, code: int) -> None:
    made = cloud(codes=[str(code)] * 3)
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == code
    assert made.commands().count("create") == 1


def test_capacity_and_ssh_are_retried(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(faults=[["create", CAPACITY, 2], ["mkdir", REFUSED, 1]])
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert made.commands().count("create") == 3
    shown = capsys.readouterr().err
    assert "attempt 1 of 3 failed" in shown and "the next is in 0.01 s" in shown and "the next is in 0.02 s" in shown


def test_no_capacity_in_the_end(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(faults=[["create", CAPACITY, 9]])
    assert tpu_vm.main(["create", *PLACE]) == 2
    assert made.commands() == ["create"] * 3
    shown = capsys.readouterr().err
    assert "gcloud failed 3 times" in shown and "no machines of run exist anymore" in shown


def test_a_failed_request_is_repeated(cloud) -> None:
    made = cloud(states=["FAILED", "ACTIVE"])
    assert tpu_vm.main(["create", *PLACE]) == 0
    assert made.commands() == ["create", "delete", "create"]


def test_a_lasting_fault_ends_the_run_and_reports_what_is_left(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(faults=[["sha256sum", "lm_research-1-py3-none-any.whl: FAILED", 1]])
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 2
    assert not any("setsid" in argument for call in made["calls"] for argument in call)
    shown = capsys.readouterr().err
    assert "whl: FAILED" in shown and "these still exist and cost money" in shown


def test_unknown_state_is_reported(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud(faults=[["list", "PERMISSION_DENIED", 9]])
    assert tpu_vm.main(["delete", *PLACE]) == 0
    assert "WARNING: cannot check whether machines of run still exist" in capsys.readouterr().err


def test_secrets_are_passed_only_in_a_file(
    cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = cloud()
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN", *TRAIN]) == 2  # it is not set
    assert "variables that are not set here: TOKEN" in capsys.readouterr().err and made.commands() == []
    monkeypatch.setenv("TOKEN", "hush it's")
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN", *TRAIN]) == 0
    content, mode = made["files"]["secrets.sh"]
    assert content == "export TOKEN='hush it'\"'\"'s'\n" and mode == "0o600"
    captured = capsys.readouterr()
    assert "hush" not in json.dumps(made["calls"]) + captured.out + captured.err
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN=hush it", *TRAIN]) == 2
    assert "hush" not in capsys.readouterr().err


def test_a_dry_run_calls_nothing(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    for command in ("create", "run", "logs", "stop", "delete", "ssh"):
        assert tpu_vm.main([command, *PLACE, "--dry_run", *TRAIN]) == 0
    assert made["calls"] == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and all(line.startswith("gcloud compute tpus ") for line in lines)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "--name=run", "--zone=z", *TRAIN], "--project and --zone are needed"),
        (["run", "--name=Run!", "--project=p", "--zone=z", *TRAIN], "--name=Run!: use"),
        (["run", *PLACE], "Nothing to run"),
        (["run", *PLACE, "--", f"--config={ROOT}/configs/quickstart.py"], "--workdir is missing"),
        (["run", *PLACE, *TRAIN, "--config.train.steps=1"], "train.steps"),
    ],
)
def test_errors_make_no_calls(cloud, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    assert tpu_vm.main(argv) == 2
    assert said in capsys.readouterr().err and made.commands() == []
