"""Tiny training runs through the real command, in this process or in a separate one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from lm_research import cli, compare, train
from lm_research.run import meter

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, LOG, SAVE, EVALUATE = 20, 7, 6, 10  # no two of them coincide before the end, so every kind of resume occurs
_WORDS = """the a king son house city day people land man lord went came said gave took saw made great good old many few
all his her their of in to and with from over under river stone bread water light night sheep field father mother
brother servant voice hand heart word law gold fire mountain sea""".split()

# Code that a child process runs before the command, where a test must slow it down to interrupt it.
SLOW_FEED = """
import time
from lm_research.data.sampler import BatchBuilder
make = BatchBuilder.__call__
BatchBuilder.__call__ = lambda self, number: (time.sleep(0.1 * (self.seed is not None)), make(self, number))[1]
"""
SLOW_CHECKPOINTS = """
import time
from lm_research.run.checkpoint_items import FilesHandler
write = FilesHandler.save
FilesHandler.save = lambda *args, **named: (write(*args, **named), time.sleep(2))[0]
"""
SLOW_EVALUATION = """
import os, pathlib, time
from lm_research.run import evaluator
evaluate = evaluator.evaluate
def watched(batches):
    for batch in batches:
        yield batch
        while not pathlib.Path(os.environ["SAVED"]).exists():
            time.sleep(0.05)
        pathlib.Path(os.environ["EVALUATING"]).touch()
        time.sleep(1)
evaluator.evaluate = lambda step, params, batches, *rest: evaluate(step, params, watched(batches), *rest)
"""
SLOW_CORPUS = """
import time
from lm_research.common import disk
publish = disk.publish
disk.publish = lambda *args: (time.sleep(0.5), publish(*args))[1]
"""


def text(documents: int = 60, seed: int = 0) -> str:
    """Documents of a few sentences of random words, divided by blank lines."""
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(4, 10))).capitalize() + "."

    return "\n\n".join("\n".join(sentence() for _ in range(draw.randint(4, 9))) for _ in range(documents)) + "\n"


@dataclasses.dataclass(frozen=True)
class Lab:
    """A corpus and a cache that tests share.

    Attributes:
      folder: the directory of both.
    """

    folder: pathlib.Path

    @classmethod
    def make(cls, folder: pathlib.Path) -> Lab:
        (folder / "corpus.txt").write_text(text())
        return cls(folder)

    def flags(self, variant: str = "bert") -> list[str]:
        """The tiny run `variant`: bert as in the paper, or gpt with accumulation, averaging and nonfinite=skip."""
        keys = {
            "model.num_layers": 2,
            "model.hidden_size": 32,
            "model.intermediate_size": 64,
            "model.max_length": 32,
            "model.dropout_rate": 0.1,
            "model.attention_dropout_rate": 0.1,
            "data.max_length": 32,
            "data.source": self.folder / "corpus.txt",
            "data.cache_dir": self.folder / "cache",
            "tokenizer.vocab_size": 320,
            "train.num_steps": STEPS,
            "train.batch_size": 8,
            "logging.every_steps": LOG,
            "logging.trackers": "none",
            "eval.every_steps": EVALUATE,
            "eval.num_batches": 3,
            "eval.num_samples": 1,
            "checkpoint.every_steps": SAVE,
            "checkpoint.every_minutes": 0,
            "checkpoint.keep": 4,
        }
        if variant == "gpt":
            keys |= {"train.accumulation_steps": 2, "train.ema_decay": 0.9, "train.on_nonfinite": "skip"}
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        return [f"--config={ROOT}/configs/quickstart.py:{variant}", *flags]

    def train(self, workdir: pathlib.Path, *flags: str, variant: str = "bert") -> int:
        """Run the command in this process; return its exit code."""
        return call(without_training_of_tokenizers([*self.flags(variant), f"--workdir={workdir}", *flags]))

    def start(
        self, workdir: pathlib.Path, *flags: str, variant: str = "bert", before: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        """Start the command in a separate process, after the Python statements of `before` if there are any."""
        flags = without_training_of_tokenizers([*self.flags(variant), f"--workdir={workdir}", *flags])
        return start(flags, before, **environment)


def without_training_of_tokenizers(flags: list[str]) -> list[str]:
    """Flags without those about training a tokenizer, if the run takes an existing one and so would refuse them."""
    if not any(flag.startswith(("--config.train.init_from=", "--config.tokenizer.path=")) for flag in flags):
        return flags
    return [
        flag for flag in flags if not flag.startswith(("--config.tokenizer.type=", "--config.tokenizer.vocab_size="))
    ]


def call(argv: list[str]) -> int:
    """`python -m lm_research.train ARGV` in this process, which keeps JAX's settings; return the exit code.

    The measured peak of the CPU is left out: it takes a second and is not needed here.
    """
    mesh, precision = jax.sharding.get_mesh(), jax.config.jax_default_matmul_precision
    with mock.patch.object(meter, "peak_flops", lambda: (1e12, "made up")):
        try:
            return cli.call(train.main, argv, command="train", summary="")
        finally:
            jax.set_mesh(mesh)
            jax.config.update("jax_default_matmul_precision", precision)


def start(argv: list[str], before: str = "", **environment: str) -> subprocess.Popen[str]:
    """`python -m lm_research.train ARGV` in a separate process; its output is piped, errors included."""
    command = [sys.executable, "-m", "lm_research.train"]
    if before:
        command = [
            sys.executable,
            "-c",
            f"{before}\nfrom lm_research import cli, train\ncli.run(train.main, command='train', summary='')",
        ]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.Popen(
        [*command, *argv], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Wait; return exit code and output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


def kill_when(process: subprocess.Popen[str], ready: Callable[[], Any], number: int, timeout: float = 200) -> None:
    """Send a signal as soon as `ready()` is true; fails if the process ends before."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            code, output = finish(process)
            raise AssertionError(f"never ready; exit code {code}\n{output}")
        time.sleep(0.002)
    process.send_signal(number)


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; none before the run writes one, and no incomplete line."""
    path = workdir / "metrics.jsonl"
    content = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def last_step(workdir: pathlib.Path) -> int:
    return max([line["step"] for line in metrics(workdir)], default=0)


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """Temporary folders in a folder: of checkpoints, or of corpora, that are being written or whose writer died."""
    marks = ("tmp", ".work")  # of checkpoints; of corpora, whose finished shards are kept for the next start
    return [path for path in folder.iterdir() if any(m in path.name for m in marks)] if folder.is_dir() else []


def summary(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def same(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Whether `python -m lm_research.compare A B --assert-equal` exits with 0."""
    with quiet():
        code = compare.main([str(a), str(b), "--assert-equal"])
    assert code in (0, 1)
    return code == 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
