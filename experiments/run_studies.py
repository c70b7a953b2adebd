"""`python -m experiments.run_studies --workdir=runs/studies --output=tables --workers=4 --minutes=5`: all studies, one after another.

Each study has a folder in WORKDIR and a time limit of --minutes. A study that has not finished by then is stopped (it saves, and the same
command continues it), and the next one begins. If a study fails, the others still run, and it is named at the end. The studies share
WORKDIR/cache, so the text is tokenized once. After each study, its tables are written to OUTPUT/STUDY.md and its study.json to
OUTPUT/STUDY.json: small files to keep.

--only=masking_rate,packing selects some studies; several commands that select different ones may run at once. experiments/settings.py has
the variables that make the studies larger or smaller: put STUDY_STEPS=3 STUDY_TRIALS=2 before the command, with a separate --workdir, to
check that all of them work.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from lm_research import cli
from lm_research.common import interrupts
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, ConfigError, suggest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Study -> its sweep, and its tables: a module and its arguments, in addition to the study's folder.
TABLE = "experiments.table"
STUDIES = {
    "masking_rate": ("masking_rate/sweep.py", [(TABLE, "--metrics=eval_mlm_loss_nats,eval_mlm_accuracy,seconds")]),
    "sentence_pairs": (
        "sentence_pairs/sweep.py",
        [(TABLE, "--metrics=eval_mlm_loss_nats,eval_mlm_accuracy,eval_nsp_accuracy,eval_sop_accuracy,seconds")],
    ),
    "packing": ("packing/sweep.py", [(TABLE, "--metrics=eval_mlm_loss_nats,tokens_per_second,step,seconds")]),
    "lr_batch": ("lr_batch/sweep.py", [(TABLE, "--across=optimizer.learning_rate")]),
    "optimizers": ("optimizers/sweep.py", [(TABLE,)]),
    "optimizers_seeds": ("optimizers/seeds.py", [(TABLE, "--metrics=eval_loss_nats,tokens_per_second")]),
    "norm_placement": ("norm_placement/sweep.py", [(TABLE, "--across=optimizer.learning_rate")]),
    "mup": ("mup/sweep.py", [(TABLE, "--across=optimizer.learning_rate")]),
    "scaling_law": ("scaling_law/sweep.py", [("experiments.scaling_law.fit",), (TABLE, "--across=train.budget")]),
}
# Study -> the module that makes its text, and the file in WORKDIR that it writes.
TEXTS = {"packing": ("experiments.packing.make_verses", "verses.txt")}
GRACE = 60.0  # seconds that a study gets to exit after SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all studies are done, 1 if one failed or ran out of time, 2 for an error, 75 if it was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run_studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the studies")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the tables")
    parser.add_argument("--workers", type=int, default=1, help="number of trials to run at a time (1)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit of each study (60)")
    parser.add_argument("--only", default="", help="names of studies, separated by commas (all)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_args(argv)
    # SIGTERM acts like Ctrl-C: the signal is passed on to the running study.
    before = {number: signal.signal(number, signal.default_int_handler) for number in interrupts.SIGNALS}
    try:
        return cli.guarded(lambda: run(options), debug=options.debug)
    except KeyboardInterrupt:
        print("stopped; the same command continues the studies")
        return STOPPED_BY_SIGNAL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(options: argparse.Namespace) -> int:
    """Run the selected studies and return the exit code."""
    names = [name for name in options.only.split(",") if name] or list(STUDIES)
    for name in names:
        if name not in STUDIES:
            raise ConfigError(f"--only has {name!r}. {suggest(name, STUDIES)}")
    options.workdir = cli.directory(str(options.workdir))
    options.output = cli.directory(str(options.output), "--output")
    options.output.mkdir(parents=True, exist_ok=True)
    ends = {}
    for name in names:
        begin = time.monotonic()
        code = run_study(name, options)
        ends[name] = {DONE: "done", STOPPED_BY_SIGNAL: "out of time"}.get(code, f"failed with exit code {code}")
        if code in (DONE, STOPPED_BY_SIGNAL):  # after a failure, the folder may hold the files of an earlier sweep
            collect(name, options)
        print(f"{datetime.now():%H:%M:%S} {name}: {ends[name]} after {time.monotonic() - begin:.0f} s", flush=True)
    print("\n".join(f"{name}: {end}" for name, end in ends.items()))
    return DONE if set(ends.values()) == {"done"} else 1


def run_study(name: str, options: argparse.Namespace) -> int:
    """Run one study until it ends or its time runs out; return its exit code."""
    shared = environment(options.workdir)
    if name in TEXTS:
        module, file = TEXTS[name]
        made = subprocess.run([sys.executable, "-m", module, str(options.workdir / file)], cwd=ROOT, env=shared)
        if made.returncode:
            return made.returncode
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        f"--sweep={ROOT / 'experiments' / STUDIES[name][0]}",
        f"--workdir={options.workdir / name}",
        f"--workers={options.workers}",
        f"--cache_dir={options.workdir / 'cache'}",
    ]
    with (options.output / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=shared, start_new_session=True
        )  # in a new session, so that a terminal's Ctrl-C reaches the study only once, through this process
        for signal_number, timeout in ((signal.SIGTERM, 60 * options.minutes), (signal.SIGKILL, GRACE)):
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal_number)
            except BaseException:
                process.send_signal(signal.SIGTERM)
                process.wait()
                raise
        return process.wait()


def environment(workdir: pathlib.Path) -> dict[str, str]:
    """Return a study's environment variables: the paths of other studies' results and texts, and of this package."""
    own = {
        "STUDY_FROM": str(workdir / "optimizers"),
        "STUDY_VERSES": str(workdir / "verses.txt"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **own}


def collect(name: str, options: argparse.Namespace) -> None:
    """Write the tables of a study's trials so far and copy its study.json."""
    folder, parts = options.workdir / name, []
    for module, *arguments in STUDIES[name][1]:
        command = [sys.executable, "-m", module, str(folder), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        parts.append(done.stdout if done.returncode == DONE else done.stderr)
    (options.output / f"{name}.md").write_text(f"# {name}\n\n" + "\n".join(parts))
    if (folder / "study.json").is_file():
        shutil.copy(folder / "study.json", options.output / f"{name}.json")


if __name__ == "__main__":
    cli.start(main)
