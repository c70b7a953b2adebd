"""TPU VMs of a simulated cloud: which calls are made, what is retried, and what is left behind."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest
from cloud_simulator import Cloud, Weather

from launch import tpu_vm
from launch.description import Description
from launch.gcloud import Gcloud
from launch.slices import Slices

ROOT = pathlib.Path(__file__).parents[2]
PLACE = ["--name=run", "--project=my-project", "--zone=us-west4-a", "--tries=3"]
TRAIN = ["--", f"--config={ROOT}/configs/quickstart.py", "--config.train.num_steps=9", "--workdir=/mnt/all/run"]
CAPACITY, REFUSED = "ERROR: RESOURCE_EXHAUSTED: no more capacity", "ssh: connect to host 1.2.3.4: Connection refused"


def commands(cloud: Cloud) -> list[str]:
    """The commands that change something."""
    return [next(word for word in call if word in ("create", "delete", "scp", "ssh")) for call in changes(cloud)]


def changes(cloud: Cloud) -> list[list[str]]:
    return [call for call in cloud.calls if "list" not in call]


def test_a_run_from_creation_to_its_end(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert changes(made)[0] == [
        *("compute", "tpus", "queued-resources", "create", "run", "--node-id=run", "--accelerator-type=v5litepod-16"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--project=my-project", "--zone=us-west4-a", "--quiet"),
    ]
    sent = [argument for call in made.calls for argument in call if argument.startswith("--command=")]
    assert any("'abc123  lm_research-1-py3-none-any.whl' | sha256sum --check" in command for command in sent)
    assert any("-m lm_research.train --config=config.json --workdir=/mnt/all/run" in command for command in sent)
    files = made.requests["run"].nodes["run"].files
    assert json.loads(files["config.json"][0])["train"]["num_steps"] == 9
    shown = capsys.readouterr().err
    assert "these still exist and cost money: queued-resources run ACTIVE; tpu-vm run READY" in shown
    assert "runner" not in shown  # another user's machine
    place = "--project=my-project --zone=us-west4-a"
    assert f"delete with: python -m launch.tpu_vm delete --name=run --slices=1 {place}" in shown


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--accelerator=v4-32"], ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"]),
        (["--accelerator=v5p-32"], ["--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5"]),
        (["--accelerator=v6e:4x4"], ["--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"]),
        (["--accelerator=v5p-512", "--topology=4x4x16"], ["--type=v5p", "--topology=4x4x16"]),
        (["--version=v2-alpha-tpuv5-lite-new"], ["--runtime-version=v2-alpha-tpuv5-lite-new"]),
        (["--slices=2", "--spot"], ["--node-count=2", "--node-prefix=run", "--spot"]),
        (["--reserved"], ["--reserved"]),
        (["--flex_start=24h"], ["alpha", "--provisioning-model=flex-start", "--max-run-duration=24h"]),
        (["--valid_until=6h"], ["--valid-after-duration=1s", "--valid-until-duration=6h"]),
        (["--network=n", "--subnetwork=s"], ["--network=n", "--subnetwork=s"]),
        (["--service_account=a@b.iam.gserviceaccount.com"], ["--service-account=a@b.iam.gserviceaccount.com"]),
        (["--label=team=nlp", "--label=cost=low"], ["--labels=team=nlp,cost=low"]),
        (["--internal_ips"], ["--internal-ips"]),
        (
            ["--data_disk=corpus:read-only"],
            ["--data-disk=source=projects/my-project/zones/us-west4-a/disks/corpus,mode=read-only"],
        ),
    ],
)
def test_what_a_request_says(cloud, flags: list[str], sent: list[str]) -> None:
    """The simulated gcloud refuses a flag that is not in the reference of its command."""
    made = cloud()
    assert tpu_vm.main(["create", *PLACE, *flags]) == 0
    assert set(sent) <= set(changes(made)[0])


def test_variables_and_options_of_xla_reach_training(cloud) -> None:
    made = cloud()
    flags = ["--env=GREETING=it's me", "--xla_flag=xla_tpu_x=1", "--xla_flag=xla_dump_to=/tmp/d", "--internal_ips"]
    assert tpu_vm.main(["run", *PLACE, *flags, *TRAIN]) == 0
    (start,) = [argument for call in made.calls for argument in call if "setsid" in argument]
    assert "export LIBTPU_INIT_ARGS=" in start and "--xla_tpu_x=1 --xla_dump_to=/tmp/d" in start
    assert all("--internal-ip" in call for call in changes(made) if call[3] in ("ssh", "scp"))


def test_preempted_slices_are_requested_again(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(weather=Weather(preempted=0.2, events=1), work=3600)
    assert tpu_vm.main(["run", *PLACE, "--spot", "--slices=2", "--delete_after", *TRAIN]) == 0
    assert commands(made).count("create") == 2 and commands(made).count("delete") == 2
    starts = [call for call in made.calls if any("setsid" in argument for argument in call)]
    assert [call[4] for call in starts] == ["run-0", "run-1"] * 2 and len({tuple(call[5:]) for call in starts}) == 1
    shown = capsys.readouterr().err
    assert "run was pre-empted; restart 1" in shown and "no machines of run exist anymore" in shown


def test_a_stopped_run_continues_on_its_machines(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(codes=[75, 75])
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert commands(made).count("create") == 1
    assert sum("setsid" in argument for call in made.calls for argument in call) == 3
    assert "run stopped after saving; restart 2" in capsys.readouterr().err


def test_machines_that_do_not_answer_are_replaced(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(weather=Weather(broken=1.0, events=1))
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert commands(made).count("create") == 2
    assert "has a worker that does not answer" in capsys.readouterr().err


def test_a_slice_under_repair_is_waited_for(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(weather=Weather(repaired=1.0, events=1))
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert commands(made).count("create") == 1 and "run: REPAIRING" in capsys.readouterr().err


def test_restarts_have_a_limit(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud(codes=[75, 75, 75])
    assert tpu_vm.main(["run", *PLACE, "--restarts=1", *TRAIN]) == 2
    assert "run has not finished after 1 restarts" in capsys.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_failure_of_training_is_returned_and_not_repeated(cloud, code: int) -> None:
    made = cloud(codes=[code] * 3)
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == code
    assert commands(made).count("create") == 1


def test_capacity_and_ssh_are_retried(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    made.faults = [["create", CAPACITY, 2], ["mkdir", REFUSED, 1]]
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 0
    assert commands(made).count("create") == 3
    shown = capsys.readouterr().err
    assert "attempt 1 of 3 failed" in shown and "the next is in 5 s" in shown and "the next is in 10 s" in shown


def test_no_capacity_in_the_end(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    made.faults = [["create", CAPACITY, 9]]
    assert tpu_vm.main(["create", *PLACE]) == 2
    assert commands(made) == ["create"] * 3
    shown = capsys.readouterr().err
    assert "gcloud failed 3 times" in shown and "no machines of run exist anymore" in shown


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("RESOURCE_EXHAUSTED: Quota 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' exhausted. Limit 0", "Quotas"),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "roles/tpu.admin"),
        ("Permission denied on 'locations/us-moon1-a'. reason: LOCATION_POLICY_VIOLATED", "zone"),
        ("Cloud TPU API has not been used in project 1 before", "gcloud services enable"),
        ("INVALID_ARGUMENT: the accelerator v5litepod-16 was not found in zone us-west4-a", "launch.doctor"),
    ],
)
def test_errors_that_cannot_pass_are_not_repeated(cloud, error: str, fix: str, capsys) -> None:
    made = cloud()
    made.faults = [["create", f"ERROR: {error}", 9]]
    assert tpu_vm.main(["create", *PLACE]) == 2
    assert commands(made) == ["create"] and fix in capsys.readouterr().err


def test_a_failed_request_is_repeated(cloud) -> None:
    made = cloud(weather=Weather(failed=1.0, events=1))
    assert tpu_vm.main(["create", *PLACE]) == 0
    assert commands(made) == ["create", "delete", "create"]


def test_a_lasting_fault_ends_the_run_and_reports_what_is_left(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    made.faults = [["sha256sum", "lm_research-1-py3-none-any.whl: FAILED", 1]]
    assert tpu_vm.main(["run", *PLACE, *TRAIN]) == 2
    assert not any("setsid" in argument for call in made.calls for argument in call)
    shown = capsys.readouterr().err
    assert "whl: FAILED" in shown and "these still exist and cost money" in shown


def test_unknown_state_is_reported(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud().faults = [["list", "PERMISSION_DENIED", 9]]
    assert tpu_vm.main(["delete", *PLACE]) == 0
    assert "WARNING: cannot check whether machines of run still exist" in capsys.readouterr().err


def test_a_locked_key_is_an_error_and_not_a_question(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud().key = "locked"
    assert tpu_vm.main(["run", *PLACE, "--delete_after", *TRAIN]) == 2
    shown = capsys.readouterr().err
    assert "ssh-add ~/.ssh/google_compute_engine" in shown and "no machines of run exist anymore" in shown


def test_secrets_are_passed_only_in_a_file(
    cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = cloud()
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN", *TRAIN]) == 2  # it is not set
    assert "variables that are not set here: TOKEN" in capsys.readouterr().err and commands(made) == []
    monkeypatch.setenv("TOKEN", "hush it's")
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN", *TRAIN]) == 0
    content = made.requests["run"].nodes["run"].files["secrets.sh"]
    assert content == ("export TOKEN='hush it'\"'\"'s'\n", 0o600)
    captured = capsys.readouterr()
    assert "hush" not in json.dumps(made.calls) + captured.out + captured.err
    assert tpu_vm.main(["run", *PLACE, "--secret=TOKEN=hush it", *TRAIN]) == 2
    assert "hush" not in capsys.readouterr().err


def test_a_dry_run_calls_nothing(cloud, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    for command in ("create", "run", "logs", "stop", "delete", "ssh"):
        assert tpu_vm.main([command, *PLACE, "--dry_run", *TRAIN]) == 0
    assert made.calls == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 8 and all(line.startswith("gcloud compute tpus ") and "--quiet" in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "--name=run", "--zone=us-west4-a", *TRAIN], "--project and --zone are needed"),
        (["run", *PLACE, "--name=Run!", *TRAIN], "use 1 to 40 lower-case letters"),
        (["run", *PLACE, "--name=my run", *TRAIN], "use 1 to 40 lower-case letters"),
        (["run", *PLACE, "--project=My Project", *TRAIN], "is not a project ID"),
        (["run", *PLACE, "--zone=us-west4", *TRAIN], "is a region; add the zone's letter, as in us-west4-a"),
        (["run", *PLACE, "--zone=US-WEST4-A", *TRAIN], "is not a zone"),
        (["run", *PLACE, "--accelerator=v5e-16", *TRAIN], "is called v5litepod-16"),
        (["run", *PLACE, "--accelerator=tpu7x:2x2x2", *TRAIN], "does not serve tpu7x. Use `python -m launch.gke`"),
        (["run", *PLACE, "--version=v2-alpha-tpuv6e", *TRAIN], "is the runtime of v6e"),
        (["run", *PLACE, "--version=2.12.0", *TRAIN], "TPU nodes"),
        (["run", *PLACE, "--spot", "--reserved", *TRAIN], "exclude each other"),
        (["run", *PLACE, "--valid_until=tomorrow", *TRAIN], "is not a duration"),
        (["run", *PLACE, "--data_disk=corpus", *TRAIN], "4 machines"),
        (["run", *PLACE, "--label=Team=NLP", *TRAIN], "--label='Team=NLP'"),
        (["run", *PLACE, "--env=A", *TRAIN], "write NAME=VALUE"),
        (["run", *PLACE, "--env=A=1", "--env=A=2", *TRAIN], "A is set twice"),
        (["run", *PLACE, "--xla_flag=--xla_tpu_x=1", *TRAIN], "without dashes"),
        (["run", *PLACE, "--xla_flag=xla_gpu_x=1", *TRAIN], "not an option of XLA for a TPU"),
        (["run", *PLACE], "Nothing to run"),
        (["run", *PLACE, "--", f"--config={ROOT}/configs/quickstart.py"], "--workdir is missing"),
        (["run", *PLACE, *TRAIN[:-1], "--workdir=runs/x"], "another directory on each machine"),
        (["run", *PLACE, *TRAIN[:-1], "--workdir=s3://b1/x"], "mount it on every machine"),
        (["run", *PLACE, *TRAIN[:-1], "--workdir=gs://b1"], "Give gs://BUCKET/RUN"),
        (["run", *PLACE, "--", "--config=configs/none.py", "--workdir=/mnt/x"], "configs/none.py"),
        (["run", *PLACE, *TRAIN, "--config.train.steps=1"], "train.steps"),
    ],
)
def test_mistakes_cost_nothing(cloud, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud()
    assert tpu_vm.main(argv) == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert said in error and len(error.partition(" Config files in ")[0]) < 500 and changes(made) == []


def test_the_shell_commands_of_a_worker(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They start training once with its variables, and report that it runs, its exit code, or that it is lost."""
    home = tmp_path / "lm_research_run"
    (home / "env/bin").mkdir(parents=True)
    (home / "secrets.sh").write_text("export TOKEN=hush\n")
    python = home / "env/bin/python"
    python.write_text('#!/bin/sh\necho "$GREETING $TOKEN $*" >> ran\nwhile [ ! -e end ]; do sleep 0.05; done\nexit 3\n')
    python.chmod(0o755)
    slices = Slices(
        Description("run", (), project="my-project", zone="us-west4-a", env=("GREETING=it's me",)), Gcloud()
    )
    slices.workdir = ["--workdir=gs://bucket/run"]

    def ssh(node: str, worker: str, command: str, quiet: bool = False) -> str:
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout

    monkeypatch.setattr(slices, "_ssh", ssh)
    assert slices.exit_code() == 75
    slices.start()
    slices.start()
    while not (home / "ran").exists():
        pass
    assert slices.exit_code() is None
    (home / "end").touch()
    while slices.exit_code() is None:
        pass
    assert slices.exit_code() == 3
    expected = "it's me hush -m lm_research.train --config=config.json --workdir=gs://bucket/run\n"
    assert (home / "ran").read_text() == expected
