r"""`python -m experiments.run --sweep=experiments/lr/sweep.py --workdir=runs/lr --workers=2`: a study of many runs.

The sweep's file defines get_sweep() (see lm_research/sweeping/sweep.py for its options). Each trial is an ordinary run directory,
WORKDIR/trials/NUMBER. The study is stored in WORKDIR/study.db, or in any Optuna storage given by --storage, so that many machines can
share one. The same command continues a study that was stopped or killed, and may be started several times at once. Ctrl-C and SIGTERM
save the running trials; a second signal exits without waiting for them. WORKDIR/table.md has the results, best first.

--launcher=tpu_vm runs each worker's trials on a separate TPU VM, NAME-WORKER, and --launcher=slurm runs each trial as a job. Put the flags
of launch.tpu_vm or launch.slurm after --; WORKDIR must be in a bucket or on storage that this machine can access too. Example:

  python -m experiments.run --sweep=experiments/lr/sweep.py --workdir=gs://my-bucket/lr --workers=8 --launcher=tpu_vm -- \
    --name=lr --project=my-project --zone=us-west4-a --accelerator=v5litepod-8 --spot
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from lm_research import cli
from lm_research.common import flags, interrupts
from lm_research.common.bucket_copies import BucketCopy, names
from lm_research.common.paths import is_remote
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, ConfigError
from lm_research.sweeping import sweep as sweeps

_PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
ROOT = pathlib.Path(__file__).resolve().parents[1]


def launcher(kind: str, flags: Sequence[str], module: str) -> Callable[[list[str], int], list[str]] | None:
    """Return a function from training arguments and worker number to the command that runs them; None for this machine.

    Raises:
      ConfigError: the launcher's name for the machines is missing, or it runs something other than training.
    """
    if kind == "local":
        if flags:
            raise ConfigError(f"--launcher=local takes no flags after --, but got {' '.join(flags)}.")
        return None
    names = [flag.partition("=")[2] for flag in flags if flag.startswith("--name=")]
    if len(names) != 1:
        raise ConfigError(
            f"--launcher={kind} needs --name=NAME after --, exactly once: the name of the machines or jobs."
        )
    if module != "lm_research.train":
        raise ConfigError(f"--launcher={kind} only runs lm_research.train, but the sweep's module is {module}.")
    rest = [flag for flag in flags if not flag.startswith("--name=")]

    def command(arguments: list[str], worker: int) -> list[str]:
        own = [f"--name={names[0]}-{worker}", *rest, "--", *arguments]
        if kind == "tpu_vm":
            return [sys.executable, "-m", "launch.tpu_vm", "run", *own]
        made = shlex.join([sys.executable, "-m", "launch.slurm", *own])
        return ["bash", "-c", f"set -o pipefail; {made} | sbatch --wait"]

    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all trials are done, 75 if it was stopped and can be resumed, 2 for an error or if all trials failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = flags.Parser(
        prog="python -m experiments.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", required=True, help="file with a get_sweep()")
    parser.add_argument("--workdir", required=True, help="directory of the study")
    parser.add_argument(
        "--workers", type=flags.bounded(int, 1, 1024), default=1, help="number of trials to run at a time (1)"
    )
    parser.add_argument(
        "--launcher", choices=("local", "tpu_vm", "slurm"), default="local", help="where they run (local)"
    )
    parser.add_argument("--storage", default="", help="Optuna storage, as a URL (the file WORKDIR/study.db)")
    parser.add_argument(
        "--cache_dir", default="", help="directory of corpora and tokenizers, which studies can share (WORKDIR/cache)"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an environment variable for the trials; {worker} is the worker's number: --env 'CUDA_VISIBLE_DEVICES={worker}'",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, lambda args: run(args, argv[cut + 1 :]), argv[:cut])


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables of the trials; raise a ConfigError for an --env without a value.

    Trials that run in parallel on this machine may share a GPU, so preallocation, by which each would take three quarters of
    its memory, is turned off.
    """
    wrong = [text for text in args.env if not re.match(r"[A-Za-z_]\w*=", text) or "\0" in text]
    if wrong:
        raise ConfigError(f"--env {wrong[0]}: write NAME=VALUE.")
    shared = args.workers > 1 and args.launcher == "local" and _PREALLOCATE not in os.environ
    return ({_PREALLOCATE: "false"} if shared else {}) | dict(text.split("=", 1) for text in args.env)


def run(args: argparse.Namespace, launcher_flags: Sequence[str]) -> int:
    """Run the study and return the exit code."""
    from lm_research.run.run_directory import lock  # after the arguments are checked: it loads JAX

    place = cli.directory(args.workdir, bucket=True)
    sweep = sweeps.load(args.sweep)
    outputs = [f"trials/{name}" for name in names(place / "trials", recursive=False)]
    alone = is_remote(place) and not args.storage  # the study's file cannot be shared there
    with lock(place) if alone else contextlib.nullcontext(), BucketCopy(place, also=outputs) as copy:
        return drive(args, launcher_flags, sweep, copy)


def drive(args: argparse.Namespace, launcher_flags: Sequence[str], sweep: sweeps.Sweep, copy: BucketCopy) -> int:
    """Run a study whose directory is a local folder or in a bucket, and return the exit code."""
    from lm_research.sweeping.runner import Workers  # after the arguments are checked: they load Optuna
    from lm_research.sweeping.study import Study, write_table

    workdir, variables = copy.address, environment(args)
    cache = cli.directory(args.cache_dir, "--cache_dir", bucket=True) if args.cache_dir else None
    study = Study(sweep, copy.folder, args.storage)

    def log(line):
        return print(f"{datetime.now():%H:%M:%S} {line}", flush=True)

    log(f"study {workdir}: {sweep.num_trials} trials ({sweep.method}), {len(study.trials())} started before")
    launch = launcher(args.launcher, launcher_flags, sweep.module)
    workers = Workers(sweep, copy.folder, args.storage, log, variables, launch, cache, workdir)
    write_table(study)  # so that a report can be made from the start
    if threading.current_thread() is threading.main_thread():
        for number in interrupts.SIGNALS:
            signal.signal(
                number, lambda number, _: interrupts.exit_now(number) if workers.stop.is_set() else workers.stop.set()
            )
    done = workers.run(args.workers)
    print(write_table(study), end="")
    if done and (reason := study.all_failed()):
        raise ConfigError(f"All trials of {workdir} failed, the first because: {reason}")
    log(f"finished: {workdir / 'table.md'}" if done else "stopped; the same command continues the study")
    return DONE if done else STOPPED_BY_SIGNAL


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    cli.start(main)
