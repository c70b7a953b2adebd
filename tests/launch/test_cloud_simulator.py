"""The simulated cloud refuses what gcloud would refuse, and hangs where it would ask."""

from __future__ import annotations

import pathlib

import pytest
from cloud_simulator import Cloud, Hang

PLACE = ["--project=my-project", "--zone=us-west4-a"]
CREATE = ["--node-id=a", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", *PLACE]
QUEUED, VM = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm"]


@pytest.fixture
def active() -> Cloud:
    made = Cloud()
    assert made.run([*QUEUED, "create", "a", *CREATE]).returncode == 0
    made.sleep(120)
    return made


def test_flags_and_commands_that_do_not_exist(active: Cloud) -> None:
    with pytest.raises(AssertionError, match="no flag"):
        active.run([*QUEUED, "create", "b", *CREATE, "--provisioning-model=flex-start"])  # only in alpha
    with pytest.raises(AssertionError, match="no flag"):
        active.run([*VM, "ssh", "a", "--tunnel-through-iap", *PLACE])  # likewise
    with pytest.raises(AssertionError, match="no command"):
        active.run(["gcloud", "compute", "tpus", "make"])


def test_questions_hang(active: Cloud, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    copy = [*VM, "scp", str(tmp_path / "file"), "a:file", *PLACE]
    with pytest.raises(Hang, match="empty for no passphrase"):
        active.run(copy)
    with pytest.raises(Hang, match="continue"):
        active.run([*QUEUED, "delete", "a", "--force", *PLACE])
    active.key = "locked"
    with pytest.raises(Hang, match="for key"):
        active.run([*copy, "--quiet"])
    done = active.run([*copy, "--quiet", "--scp-flag=-oBatchMode=yes"])
    assert done.returncode == 1 and "Permission denied (publickey)" in done.stderr


def test_machines_cost_money_until_they_are_deleted(active: Cloud) -> None:
    before = active.paid
    active.sleep(600)
    assert active.paid - before == 600
    assert active.run([*QUEUED, "delete", "a", "--force", "--quiet", *PLACE]).returncode == 0
    before = active.paid
    active.sleep(600)
    assert active.paid == before
