"""Killed twenty times with -9, at random moments in random processes, a run ends with the data order of an uninterrupted one."""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import time

import jax
import numpy as np
import pytest
from test_local_pod import start

from helpers.train_helpers import Lab, checkpoints, finish, last_step, metrics, same
from lm_research import convert
from lm_research.pretrained import from_pretrained

KILLS = 20
FLAGS = (
    "--config.train.num_steps=130",
    "--config.checkpoint.every_steps=3",
    "--config.checkpoint.keep=2",
    "--config.logging.every_steps=1",
    "--config.eval.every_steps=130",
)


def lives(workdir: pathlib.Path) -> int:
    """How often the run has got past its start."""
    log = workdir / "log.txt"
    return log.read_text().count("resuming after step") if log.exists() else 0


def fed(folder: pathlib.Path) -> dict[tuple[int, int], set[str]]:
    """Digests of what was fed to each place of each step, over all processes and restarts."""
    seen: dict[tuple[int, int], set[str]] = {}
    for path in folder.iterdir():
        content = path.read_text()
        for line in content[: content.rfind("\n") + 1].splitlines():
            line = json.loads(line)
            for place, digest in enumerate(line["rows"], line["first"]):
                seen.setdefault((line["step"], place), set()).add(digest)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "topologies", [[(2, 4), (2, 2), (1, 2), (1, 1)], [(2, 2)]], ids=["8-4-2-1-devices", "same-topology"]
)
def test_killed_twenty_times(
    lab: Lab, tmp_path: pathlib.Path, topologies: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, workdir = random.Random(len(topologies)), tmp_path / "killed"
    for name in ("whole", "killed"):
        (tmp_path / f"fed_{name}").mkdir()
    monkeypatch.setenv("FEED_LOG", str(tmp_path / "fed_whole"))
    code, output = finish(start(lab, tmp_path / "whole", *topologies[0], *FLAGS))
    assert code == 0, output
    monkeypatch.setenv("FEED_LOG", str(tmp_path / "fed_killed"))
    killed = []
    for number in range(KILLS):
        processes, devices = topologies[number % len(topologies)]
        before = lives(workdir)
        pod = start(lab, workdir, processes, devices, *FLAGS)
        pids = re.match(r"local_pod: pids (.+)", pod.stdout.readline())[1].split()
        if draw.random() < 0.2:  # while it starts
            time.sleep(draw.uniform(0, 8))
        else:  # that many steps later
            later, deadline = draw.randint(1, 8), time.monotonic() + 200
            newest = max(checkpoints(workdir), default=0)
            while last_step(workdir) < newest + later or (newest and lives(workdir) == before):
                assert pod.poll() is None and time.monotonic() < deadline, finish(pod)
                time.sleep(0.01)
        assert pod.poll() is None, finish(pod)
        os.kill(int(draw.choice(pids)), 9)
        code, output = finish(pod)
        assert code == 128 + 9, output
        killed.append(last_step(workdir))
    assert killed[-1] < 130
    code, output = finish(start(lab, workdir, *topologies[0], *FLAGS))
    assert code == 0, output
    print(f"killed after the lines of steps {killed}")

    whole, pieces = fed(tmp_path / "fed_whole"), fed(tmp_path / "fed_killed")
    assert all(len(digests) == 1 for digests in pieces.values())
    assert {place: pieces[place] for place in whole} == whole
    assert len(whole) >= 130 * 8
    left, right = metrics(workdir), metrics(tmp_path / "whole")
    assert [line["step"] for line in left] == [line["step"] for line in right] and len(left) >= 130
    for a, b in zip(left, right, strict=True):
        for name in a.keys() & b.keys():
            if name.endswith("loss_nats"):
                assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a["step"])
    if len(topologies) == 1:
        assert same(tmp_path / "whole", workdir)

    # The pieces that two processes wrote become one file, with the same bits.
    assert convert.main([f"--source={workdir}", f"--output={tmp_path / 'merged'}", "--to=hf"]) == 0
    one, many = (from_pretrained(path).params for path in (tmp_path / "merged", workdir))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), one, many))
