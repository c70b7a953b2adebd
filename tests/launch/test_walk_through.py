"""The commands of launch/README.md, word by word and in their order, against the simulated cloud."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import shlex

import pytest
import yaml
from cloud_simulator import Weather
from kubernetes_fields import check
from test_doctor import HEALTHY

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "launch/README.md").read_text(encoding="utf-8")


def section(title: str) -> list[str]:
    """The command lines of a section's code blocks."""
    text = README.split(f"## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(line: str, folder: pathlib.Path) -> int | None:
    """Run a command line as a shell would: variables, quotes, and > into the folder. None if the command is not ours."""
    if assigned := re.fullmatch(r'export (\w+)="(.*)"', line):
        os.environ[assigned[1]] = assigned[2]
        return 0
    command, _, target = line.partition(" > ")
    words = shlex.split(os.path.expandvars(command))
    if words[:2] != ["python", "-m"]:
        return None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = importlib.import_module(words[2]).main(words[3:])
    if target:
        (folder / target.strip()).write_text(out.getvalue())
    else:
        print(out.getvalue())
    return code


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "")
    monkeypatch.setenv("RUN", "")
    return lambda line: run(line, tmp_path)


def test_tpu_vms(cloud, shell, capsys: pytest.CaptureFixture[str]) -> None:
    made = cloud(weather=Weather(preempted=0.05, events=2), work=2 * 3600)
    made.answers = dict(HEALTHY)
    lines = section("TPU VMs")
    assert [line.split()[0] for line in lines] == ["gcloud"] * 2 + ["export"] * 2 + ["python"] * 7
    for line in lines[:2]:
        assert made.call(shlex.split(line)) == 0  # gcloud has these commands and flags
    doctor, dry, trained = lines[4:7]
    for line in (*lines[2:4], doctor, dry):
        assert shell(line) == 0, capsys.readouterr()
    assert made.requests == {} and "nothing speaks against this launch" in capsys.readouterr().out
    assert shell(trained) == 0
    assert made.saved >= made.work and made.events == ["preempted"] * 2 and made.requests == {}
    assert "no machines of bert exist anymore" in capsys.readouterr().err
    assert shell(trained.replace("tpu_vm run", "tpu_vm create").replace("--delete_after", "")) == 0
    for line in lines[7:]:
        assert shell(line) == 0, capsys.readouterr()
    assert made.requests == {}


def test_other_sections(shell, tmp_path: pathlib.Path) -> None:
    for title in ("GKE", "Compute Engine", "SkyPilot", "Slurm"):
        assert {shell(line) for line in section(title)} <= {0, None}
    check(json.loads((tmp_path / "bert.json").read_text()))
    assert yaml.safe_load((tmp_path / "bert.yaml").read_text())["resources"]["accelerators"] == "tpu-v5litepod-16"
    for name in ("bert.sh", "bert.sbatch", "seeds.sbatch"):
        assert (tmp_path / name).read_text().startswith("#!/bin/bash")
