"""`python -m experiments.run_studies --workdir=runs/studies --output=tables --workers=4 --minutes=5`: all studies, one after another.

Each study is a folder of WORKDIR and may take --minutes; what has not ended by then is stopped (it saves, and the same command goes on with
it), and the next one begins. A study that fails is named at the end, and the others run. They share WORKDIR/cache: the text is tokenized
once. After each, its tables are written to OUTPUT/STUDY.md and its study.json to OUTPUT/STUDY.json: small files, to be kept.

--only=masking_rate,packing picks some, and several commands that pick others may run at once. experiments/settings.py has the variables
that make the studies larger or smaller: STUDY_STEPS=3 STUDY_TRIALS=2 before the command, with a --workdir of its own, sees
whether all of them work.
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
# Study -> its sweep, and the tables that are made of it: arguments of a module besides the study's folder.
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
# Study -> a module that makes its text, given a file of WORKDIR.
TEXTS = {"packing": ("experiments.packing.make_verses", "verses.txt")}
GRACE = 60.0  # seconds for a study that was told to stop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all studies are done, 1 if one failed or ran out of time, 2 for an error, 75 if it was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run_studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all studies")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of their tables")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time (1)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time of each study (60)")
    parser.add_argument("--only", default="", help="names, with commas between (all)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_args(argv)
    # As Ctrl-C by itself: the study that runs is told.
    before = {number: signal.signal(number, signal.default_int_handler) for number in interrupts.SIGNALS}
    try:
        return cli.guarded(lambda: run(options), debug=options.debug)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return STOPPED_BY_SIGNAL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(options: argparse.Namespace) -> int:
    """Does what the arguments say; returns the exit code."""
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
        if code in (DONE, STOPPED_BY_SIGNAL):  # of another, the folder may hold what an earlier sweep left
            collect(name, options)
        print(f"{datetime.now():%H:%M:%S} {name}: {ends[name]} after {time.monotonic() - begin:.0f} s", flush=True)
    print("\n".join(f"{name}: {end}" for name, end in ends.items()))
    return DONE if set(ends.values()) == {"done"} else 1


def run_study(name: str, options: argparse.Namespace) -> int:
    """Runs one study until it ends or its time does; returns its exit code."""
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
        )  # a terminal's Ctrl-C comes by this process, once
        for told, patience in ((signal.SIGTERM, 60 * options.minutes), (signal.SIGKILL, GRACE)):
            try:
                return process.wait(patience)
            except subprocess.TimeoutExpired:
                process.send_signal(told)
            except BaseException:
                process.send_signal(signal.SIGTERM)
                process.wait()
                raise
        return process.wait()


def environment(workdir: pathlib.Path) -> dict[str, str]:
    """Of a study's processes: where studies find each other's results and their texts, and this folder's modules."""
    own = {
        "STUDY_FROM": str(workdir / "optimizers"),
        "STUDY_VERSES": str(workdir / "verses.txt"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **own}


def collect(name: str, options: argparse.Namespace) -> None:
    """Writes a study's tables, as far as it has come, and copies its study.json."""
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
