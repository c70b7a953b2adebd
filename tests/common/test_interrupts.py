"""A signal before there is anything to save: one line and exit code 75, wherever the process is."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from helpers.train_helpers import Lab, checkpoints, finish, kill_when, start, summary

LINE = "stopped by {} before the first step; run the same command again to continue."
# A library that does not return to Python for minutes, and does not notice signals.
STUCK = """
import hashlib, os, pathlib
def stuck(*_, **__):
    pathlib.Path(os.environ["THERE"]).touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)
"""
MOMENTS = {
    "learning a vocabulary": "from lm_research.tokenizers.sentencepiece_training import sentencepiece\nsentencepiece.SentencePieceTrainer.train = stuck",
    "reading": "import time\nfrom lm_research.data import ingest\n"
    "ingest._shards = lambda *_: (pathlib.Path(os.environ['THERE']).touch(), time.sleep(60))",
    "compiling": "from lm_research.run import learner\nlearner.compile_step = stuck",
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [("learning a vocabulary", signal.SIGTERM), ("reading", signal.SIGINT), ("compiling", signal.SIGTERM)],
)
def test_before_the_first_step(lab: Lab, tmp_path: pathlib.Path, moment: str, number: int) -> None:
    there = tmp_path / "there"
    cache = [] if moment == "compiling" else [f"--config.data.cache_dir={tmp_path}/cache"]
    process = lab.start(tmp_path / "run", *cache, before=STUCK + MOMENTS[moment], THERE=str(there))
    kill_when(process, there.exists, number)
    code, output = finish(process, timeout=30)
    assert code == 75, output
    assert output.splitlines()[-1] == LINE.format(signal.Signals(number).name)
    assert "Traceback" not in output and output.count("stopped by") == 1
    assert not checkpoints(tmp_path / "run")


def test_while_the_libraries_are_imported(tmp_path: pathlib.Path) -> None:
    """`-X importtime` reports on standard error that imports have begun."""
    command = [sys.executable, "-X", "importtime", "-m", "lm_research.train", "--config=no.py", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[2]
    )
    for line in process.stderr:
        if line.endswith(" numpy\n"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, LINE.format("SIGINT") + "\n")
    assert "Traceback" not in errors


# Steps that take the device much longer than dispatching takes the host; both counts are kept in files.
SLOW_STEPS = """
import os, pathlib
import jax, jax.numpy as jnp
from lm_research.run import learner, progress
here = pathlib.Path(os.environ["THERE"])
make, compile, reach = learner.make_train_step, learner.compile_step, progress.Progress.reach
def slow(*arguments):
    step = make(*arguments)
    def wrapped(state, *rest, **named):
        new = step(state, *rest, **named)
        work = jax.lax.fori_loop(0, 60, lambda _, x: x @ x / 300, jnp.full((300, 300), new["step"], jnp.float32))
        return new | {"step": new["step"] + (work[0, 0] < 0)}
    return wrapped
def counted(*arguments):
    program = compile(*arguments)
    def handed(*state, **named):
        with (here / "handed").open("a") as file:
            file.write("x")
        return program(*state, **named)
    return handed
learner.make_train_step, learner.compile_step = slow, counted
progress.Progress.reach = lambda bar, step: ((here / "finished").write_text("x" * step), reach(bar, step))
"""


def test_a_signal_stops_the_device_within_two_steps(lab: Lab, tmp_path: pathlib.Path) -> None:
    """However many steps are between two lines of metrics, the host never has more than two in flight."""
    handed, finished = tmp_path / "handed", tmp_path / "finished"
    flags = ("--config.logging.every_steps=1000", "--config.train.num_steps=1000", "--config.checkpoint.every_steps=0")
    process = lab.start(tmp_path / "run", *flags, before=SLOW_STEPS, THERE=str(tmp_path))
    kill_when(process, lambda: handed.exists() and handed.stat().st_size >= 5, signal.SIGTERM)
    done = finished.stat().st_size
    code, output = finish(process)
    assert code == 75, output
    assert handed.stat().st_size <= done + 3  # two, and one that may begin between the look and the signal
    assert summary(tmp_path / "run")["step"] == finished.stat().st_size == handed.stat().st_size
    assert f"stopped by a signal after step {handed.stat().st_size};" in output


def test_children_do_not_wake_their_parent() -> None:
    """A forked child has its parent's handlers; a signal to it does not reach the parent."""
    code = """
import os, signal, time
from lm_research.common import interrupts as leaving
leaving.watch("now")
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(1)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
time.sleep(1.5 * leaving.GRACE)
print("still here", leaving.signal_received())
"""
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[1:] == ["75", "still here False"], done


@pytest.mark.slow
@pytest.mark.parametrize("process_id", ["0", "1"])
def test_both_of_two_processes_exit(lab: Lab, tmp_path: pathlib.Path, process_id: str) -> None:
    with_address = ["--coordinator=localhost:18476", "--num_processes=2"]
    pod = [
        start(
            [*lab.flags(), f"--workdir={tmp_path}/run", *with_address, f"--process_id={number}"],
            STUCK + MOMENTS["compiling"],
            THERE=str(tmp_path / number),
            JAX_PLATFORMS="cpu",
        )
        for number in "01"
    ]
    kill_when(pod[int(process_id)], lambda: all((tmp_path / number).exists() for number in "01"), signal.SIGTERM)
    for process in pod:
        code, output = finish(process, timeout=30)
        assert code == 75 and "before the first step" in output and "Traceback" not in output, output


COMMANDS = [
    *(
        f"lm_research.{name}"
        for name in "train evaluate predict generate serve prepare convert plan report compare".split()
    ),
    "experiments.run",
    "experiments.run_studies",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_signal_at_the_first_moment(module: str) -> None:
    """Sent as soon as Python begins to import the command itself; the only output is one line."""
    command = [sys.executable, "-v", "-m", module]  # reports each import, and the first lines of this package
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[2]
    )
    number = signal.SIGINT if len(module) % 2 else signal.SIGTERM
    for line in process.stderr:
        if line.startswith("import 'lm_research.common.interrupts'"):
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors[-1000:]
    told = f"stopped by ({number.name}|a signal) before it finished; run the same command again to continue.\n"
    assert re.fullmatch(told, output)
    assert "Traceback" not in errors


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "raise SystemExit", "raise KeyboardInterrupt", "f()"])
@pytest.mark.parametrize("kind", ["config", "sweep", "suite"])
def test_a_config_that_exits_is_a_user_error(tmp_path: pathlib.Path, kind: str, end: str) -> None:
    from lm_research.config import loading
    from lm_research.errors import ConfigError
    from lm_research.evaluation import suite
    from lm_research.sweeping import sweep

    path, leave = tmp_path / "file.py", os._exit
    path.write_text(f"import os, sys\ndef f(): f()\n{end}\n")
    read = {
        "config": lambda: loading.load(str(path)),
        "sweep": lambda: sweep.load(str(path)),
        "suite": lambda: suite.load_suite(str(path), {}),
    }[kind]
    with pytest.raises(ConfigError, match=r"file\.py, line [23]: "):
        read()
    assert os._exit is leave
