"""`launch.doctor` finds what would stop a launch, by commands that change nothing."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from cloud_simulator import Cloud

from launch import doctor

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ["--name=bert", "--project=my-project", "--zone=us-west4-a", "--spot"]
TRAIN = [
    "--",
    f"--config={ROOT}/configs/quickstart.py",
    "--config.data.cache_dir=gs://my-bucket/corpora",
    "--workdir=/mnt/runs/bert",
]
LIST = "compute tpus tpu-vm {} list"


def quota(name: str, limit: int, zone: str = "us-west4-a") -> dict[str, Any]:
    info = {"details": {"value": str(limit)}, "dimensions": {"zone": zone}, "applicableLocations": [zone]}
    return {"quotaId": name, "dimensionsInfos": [info]}


QUOTAS = [
    quota("TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI", 16),
    quota("TPUV5sLitepodPerProjectPerZoneForTPUAPI", 0),
    quota("TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI", 0, "us-west4-b"),
]
HEALTHY = {
    "auth list": "me@example.com\n",
    "projects describe": "my-project\n",
    "services list": "tpu.googleapis.com\n",
    "projects get-iam-policy": "roles/tpu.admin\n",
    LIST.format("accelerator-types"): "v5litepod-8\nv5litepod-16\n",
    LIST.format("versions"): "v2-alpha-tpuv5-lite\nv2-alpha-tpuv6e\n",
    "beta quotas info list": json.dumps(QUOTAS),
    "storage buckets describe": "US-WEST4\n",
}


@pytest.fixture
def healthy(cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Cloud:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = cloud()
    made.answers = dict(HEALTHY)
    return made


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Verdict and text of each check."""
    out = capsys.readouterr().out.splitlines()
    return {line[6:].partition(":")[0]: line[:6].strip() + line[6:].partition(":")[2] for line in out[:-1]}


def test_a_launch_that_would_work(healthy: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([*FLAGS, *TRAIN]) == 0
    found = lines(capsys)
    assert all(line.startswith("ok") for line in found.values())
    assert "16, of which 16 are needed" in found["quota"] and found["bucket my-bucket"] == "ok US-WEST4"
    assert all({"list", "describe", "get-iam-policy"} & set(call) and "--quiet" in call for call in healthy.calls)


@pytest.mark.parametrize(
    ("flags", "answers", "check", "said"),
    [
        ([], {"auth list": ""}, "account", "gcloud auth login"),
        ([], {"services list": ""}, "api", "gcloud services enable tpu.googleapis.com"),
        (["--accelerator=v6e-16"], {}, "type", "does not have v6e-16, but v5litepod-16"),
        (["--accelerator=v5litepod-8", "--version=v9"], {}, "runtime", "does not have v9"),
        (["--slices=2"], {}, "quota", "is 16 in us-west4-a, but 32 are needed"),
        (["--secret=NOT_SET"], {}, "training", "not set here: NOT_SET"),
        (["--accelerator=tpu7x:2x2x2"], {}, "request", "does not serve tpu7x"),
    ],
)
def test_what_would_fail(
    healthy: Cloud, flags: list[str], answers: dict[str, str], check: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy.answers |= answers
    assert doctor.main([*FLAGS, *flags, *TRAIN]) == 2
    found = lines(capsys)
    assert found[check].startswith("FAIL") and said in found[check]


@pytest.mark.parametrize(
    ("flags", "word", "error", "check", "said"),
    [
        (
            [],
            "buckets",
            "ERROR: gs://my-bucket not found: 404.",
            "bucket my-bucket",
            "buckets create gs://my-bucket --location=us-west4",
        ),
        (["--network=n"], "networks", "ERROR: NOT_FOUND: n", "network n", "--network=n cannot be used"),
        (["--data_disk=d:read-only"], "disks", "ERROR: NOT_FOUND: d", "data_disk d", "--data_disk=d cannot be used"),
        (
            [],
            "accelerator-types",
            "ERROR: Permission denied on 'locations/us-west4-a' LOCATION_POLICY_VIOLATED",
            "type",
            "locations list",
        ),
    ],
)
def test_what_gcloud_refuses(
    healthy: Cloud, flags: list[str], word: str, error: str, check: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy.faults = [[word, error, 1]]
    assert doctor.main([*FLAGS, *flags, *TRAIN]) == 2
    found = lines(capsys)
    assert found[check].startswith("FAIL") and said in found[check]


def test_what_may_not_be_asked_is_no_failure(healthy: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    healthy.faults = [[word, "ERROR: PERMISSION_DENIED", 9] for word in ("services", "get-iam-policy", "quotas")]
    assert doctor.main([*FLAGS, *TRAIN]) == 0
    found = lines(capsys)
    assert all(found[name].startswith("?") for name in ("api", "role", "quota"))


def test_what_cannot_be_decided(healthy: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    healthy.answers |= {"projects get-iam-policy": "roles/viewer\n", "storage buckets describe": "EUROPE-WEST4\n"}
    healthy.answers["beta quotas info list"] = "[]"
    assert doctor.main([*FLAGS, *TRAIN]) == 0
    found = lines(capsys)
    assert all(found[name].startswith("?") for name in ("role", "quota", "bucket my-bucket"))


@pytest.mark.parametrize(
    ("agent", "locked", "problem"),
    [(2, False, ""), (2, True, "has a passphrase"), (1, False, "an SSH agent runs without"), (0, False, "")],
)
def test_the_ssh_key(
    healthy: Cloud, agent: int, locked: bool, problem: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = pathlib.Path("~/.ssh/google_compute_engine").expanduser()
    key.parent.mkdir()
    key.touch()
    answers = {
        "-l": (agent, "3072 SHA256:abc me (RSA)\n" if agent == 0 else ""),
        "-lf": (0, "3072 SHA256:abc me (RSA)"),
    }
    monkeypatch.setattr(doctor, "_local", lambda *command: answers.get(command[1], (int(locked), "")))
    assert doctor.main([*FLAGS, *TRAIN]) == (2 if problem else 0)
    assert problem in lines(capsys)["ssh key"]


def test_a_mistake_in_the_flags(healthy: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--name=bert", "--zone=us-west4-a"]) == 2
    assert "--project and --zone are needed" in capsys.readouterr().err and healthy.calls == []
