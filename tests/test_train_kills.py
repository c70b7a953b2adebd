"""Stopped or killed at any moment, a run restarted with the same command ends like the uninterrupted one, bit for bit."""

from __future__ import annotations

import pathlib
import random
import shutil
import signal
import time

import pytest

from helpers.train_helpers import (
    LOG,
    SLOW_CHECKPOINTS,
    SLOW_CORPUS,
    SLOW_EVALUATION,
    SLOW_FEED,
    STEPS,
    Lab,
    checkpoints,
    finish,
    kill_when,
    last_step,
    metrics,
    same,
    start,
    summary,
    unfinished,
)

KILLED_AT_STEP_10 = """
import os, signal
from lm_research.run import local_shards
write = local_shards.write
def watched(path, pieces):
    if path.parent.name == "10" and os.environ.get("JAX_PROCESS_ID") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, pieces)
local_shards.write = watched
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_ends_with_its_own_code(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    process = lab.start(tmp_path, before=SLOW_FEED)
    kill_when(process, lambda: last_step(tmp_path) >= LOG, number)
    code, output = finish(process)
    assert code == 75, output
    stopped = summary(tmp_path)
    assert stopped["status"] == "stopped" and LOG <= stopped["step"] < STEPS
    assert checkpoints(tmp_path)[-1] == stopped["step"] and not unfinished(tmp_path / "checkpoints")
    assert f"stopped by a signal after step {stopped['step']}" in output and "Traceback" not in output
    assert lab.train(tmp_path) == 0
    assert f"resuming after step {stopped['step']}" in capsys.readouterr().out
    assert same(bert_run, tmp_path)


def test_killed_while_it_writes_a_checkpoint(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The checkpoint of step 12 is partially written: its folder is ignored, and that of step 6 is intact."""
    folder = tmp_path / "checkpoints"
    process = lab.start(tmp_path, before=SLOW_FEED + SLOW_CHECKPOINTS)
    kill_when(process, lambda: checkpoints(tmp_path) == [6] and unfinished(folder), signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert checkpoints(tmp_path) == [6] and unfinished(folder)
    assert lab.train(tmp_path) == 0
    assert "resuming after step 6" in (tmp_path / "log.txt").read_text()
    assert same(bert_run, tmp_path)
    assert checkpoints(tmp_path) == checkpoints(bert_run) and not unfinished(folder)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_evaluation(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """That after step 10, whose batches are being read; the checkpoint before it is of step 6."""
    sign = tmp_path / "evaluating"
    process = lab.start(
        tmp_path / "run", before=SLOW_EVALUATION, EVALUATING=str(sign), SAVED=str(tmp_path / "run/checkpoints/6")
    )
    kill_when(process, sign.exists, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert checkpoints(tmp_path / "run") == [6]
    assert not any("eval_loss_nats" in line for line in metrics(tmp_path / "run"))
    assert lab.train(tmp_path / "run") == 0
    assert same(bert_run, tmp_path / "run")
    assert checkpoints(tmp_path / "run") == checkpoints(bert_run)


@pytest.mark.slow
def test_killed_while_it_builds_the_corpus(lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cache = tmp_path / "cache"
    flag = f"--config.data.cache_dir={cache}"
    process = lab.start(tmp_path / "run", flag, before=SLOW_CORPUS)
    kill_when(process, lambda: any(path.is_dir() for path in unfinished(cache)), signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert set(cache.iterdir()) == set(unfinished(cache))
    code, output = finish(lab.start(tmp_path / "run", flag))
    assert code == 0, output
    assert same(bert_run, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bert", "gpt"])
def test_five_random_kills(lab: Lab, tmp_path: pathlib.Path, variant: str) -> None:
    """The real command, killed five times at moments drawn from the whole length of an uninterrupted run."""
    flags = ("--config.train.num_steps=400", "--config.checkpoint.every_steps=15", "--config.eval.every_steps=100")
    real = {"XLA_FLAGS": ""}  # machine code as optimized as for users
    for name in ("warm", "whole"):  # the first one fills the caches of programs and corpus
        begin = time.monotonic()
        code, output = finish(lab.start(tmp_path / name, *flags, variant=variant, **real))
        assert code == 0, output
    duration = time.monotonic() - begin
    assert same(tmp_path / "warm", tmp_path / "whole")
    draw, workdir, killed = random.Random(5), tmp_path / "killed", []
    while len(killed) < 5:
        process = lab.start(workdir, *flags, variant=variant, **real)
        moment = time.monotonic() + draw.uniform(0.1, 1.0) * duration
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.001)
        if process.poll() is not None:  # it finished before the kill: the next one starts from scratch
            finish(process)
            assert same(tmp_path / "whole", workdir)
            workdir = tmp_path / f"killed{len(killed)}"
            continue
        process.kill()
        finish(process)
        killed.append(last_step(workdir))
    code, output = finish(lab.start(workdir, *flags, variant=variant, **real))
    assert code == 0, output
    print(f"killed after the lines of steps {killed}; a run takes {duration:.1f} s")
    assert same(tmp_path / "whole", workdir)


@pytest.mark.slow
def test_killed_at_every_kind_of_moment_while_saving(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Saving at every step, killed as soon as a temporary folder, a new checkpoint, or a vanishing old one is seen."""
    flags = ("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=2", "--config.train.num_steps=40")
    assert lab.train(tmp_path / "whole", *flags) == 0
    workdir = tmp_path / "killed"
    folder, draw = workdir / "checkpoints", random.Random(1)
    moments = [
        lambda: unfinished(folder),
        lambda: len(checkpoints(workdir)) >= 3,
        lambda: checkpoints(workdir)[:1] > [3],
        lambda: any(not (folder / str(step) / "state").exists() for step in checkpoints(workdir)),
    ]
    for number in range(6):
        process = lab.start(workdir, *flags, before=SLOW_FEED.replace("0.1", "0.02"))
        first, deadline = last_step(workdir), time.monotonic() + 60
        wanted, after = moments[number % len(moments)], draw.uniform(0, 0.3)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if checkpoints(workdir)[-1:] > [first + 2] and wanted():
                    break
            except FileNotFoundError:  # a folder that vanished between two looks
                break
        time.sleep(after if number >= len(moments) else 0)
        process.kill()
        finish(process)
    assert lab.train(workdir, *flags) == 0
    assert same(tmp_path / "whole", workdir)
    assert not unfinished(folder)


@pytest.mark.slow
def test_worker_processes_change_no_number_and_end_with_the_run(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    flags = [*lab.flags(), f"--workdir={tmp_path}", "--config.data.num_workers=2"]
    process = start(flags)
    kill_when(process, lambda: last_step(tmp_path) >= LOG, signal.SIGTERM)
    code, output = finish(process)
    assert code in (0, 75), output
    code, output = finish(start(flags))
    assert code == 0, output
    assert same(bert_run, tmp_path)
    assert len(metrics(tmp_path)) == len(metrics(bert_run))


@pytest.mark.slow
def test_a_host_that_is_lost_with_its_memory(lab: Lab, tmp_path: pathlib.Path) -> None:
    """Two processes, each with half of the state; one is killed between two local writes, and what it wrote is gone."""

    def pod(workdir: pathlib.Path, port: int, *more: str, before: str = "") -> list[tuple[int, str]]:
        flags = [
            *lab.flags(),
            f"--workdir={workdir}",
            "--config.mesh.preset=fsdp",
            f"--coordinator=localhost:{port}",
            *more,
        ]
        both = [start([*flags, "--num_processes=2", f"--process_id={n}"], before, JAX_PLATFORMS="cpu") for n in "01"]
        return [finish(process) for process in both]

    whole, killed, local = tmp_path / "whole", tmp_path / "killed", tmp_path / "local"
    assert [code for code, _ in pod(whole, 18480)] == [0, 0]
    keys = ("--config.checkpoint.local_every_steps=2", f"--config.checkpoint.local_directory={local}")
    codes = [code for code, _ in pod(killed, 18481, *keys, before=KILLED_AT_STEP_10)]
    assert codes[1] == -signal.SIGKILL and codes[0] == 75
    assert checkpoints(killed) == [6]
    for folder in local.glob("*/1"):  # that of process 1
        shutil.rmtree(folder)
    done = pod(killed, 18482, *keys)
    assert [code for code, _ in done] == [0, 0], done
    assert "resuming after step 8" in done[0][1]
    assert same(whole, killed) and list(local.iterdir()) == []
    assert checkpoints(killed) == checkpoints(whole)
