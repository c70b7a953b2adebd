"""Mutation testing: change one token of the code, run the tests that reach it, and report each change that no test notices.

    python -m tests.mutation FILE_OR_FOLDER... --tests TEST_FILE_OR_FOLDER... [--outside TEST...] [--sample 100] [--seed 0] [--limit 20]
        [--jobs 2] [--work DIR]

A first run of the named tests records which functions each test calls. A mutation then runs only the tests that call its function,
the quickest first, up to `--limit` seconds of them, in a copy of the tree and in a process forked after the large imports. Tests that
compare constants with goldens call nothing: `--outside` names those for mutations outside functions. Results are
kept in `--work`: a second run repeats only survivors and what is new. equivalent.txt, next to this file, lists survivors that no test
can kill, each with its reason. Exit code 1 if others survive. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.mutation.changes import mutations
from tests.mutation.reach import calls, chosen, start

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    tuple(line.split(" | ")[:3])
    for line in (Path(__file__).with_name("equivalent.txt")).read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
LARGE = (
    "pytest",
    "numpy",
    "scipy.stats",
    "jax",
    "jax.numpy",
    "flax.nnx",
    "optax",
    "orbax.checkpoint",
    "grain",
    "tokenizers",
    "ml_collections",
)


def copies(work: Path, jobs: int) -> list[Path]:
    """Fresh copies of the tracked files and those not yet tracked, one per job."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for place in (places := [work / f"tree{number}" for number in range(jobs)]):
        shutil.rmtree(place, ignore_errors=True)
        for name in filter(lambda name: (ROOT / name).is_file(), names.stdout.splitlines()):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
        subprocess.run([sys.executable, "-m", "compileall", "-q", "lm_research"], cwd=place, check=True)
    return places


def python_files(names: list[str], pattern: str) -> list[Path]:
    paths = [Path(name).resolve() for name in names]
    return [file for path in paths for file in (sorted(path.rglob(pattern)) if path.is_dir() else [path])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--outside", nargs="+", default=[], help="tests of mutations outside functions, run first")
    parser.add_argument("--sample", type=int, default=0, help="this many mutations, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of tests for each mutation")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/lm_research_mutation"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.work / "xla"))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # loading plug-ins takes longer than most tests
    for name in LARGE:
        importlib.import_module(name)
    gc.freeze()  # collections in children leave the shared imports alone
    places, results = copies(args.work, args.jobs), args.work / "results.jsonl"
    tests = calls(places, python_files(args.tests, "test_*.py"), args.work)
    done = {line for line in results.read_text().splitlines()} if results.exists() else set()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def key(m):
        return json.dumps([m["file"], m["line"] - m["function"], m["column"], m["code"], m["old"], m["new"]])

    todo = [m for file in python_files(args.files, "*.py") for m in mutations(file) if key(m) not in done]
    todo = [m for m in todo if (m["file"], m["code"], f"{m['old']} -> {m['new']}") not in KNOWN]
    if args.sample:
        todo = random.Random(args.seed).sample(todo, min(args.sample, len(todo)))
    free, running, survivors, number = list(places), {}, 0, len(todo)
    with results.open("a") as log:

        def end(mutation: dict[str, Any], verdict: str) -> None:
            nonlocal survivors
            if verdict == "killed":
                log.write(f"{key(mutation)}\n")
                log.flush()
            else:
                survivors += 1
                print(
                    f"{mutation['file']}:{mutation['line']}: {verdict}: {mutation['code']}   {mutation['old']} -> {mutation['new']}",
                    flush=True,
                )

        while todo or running:
            if todo and free:
                names = chosen(mutation := todo.pop(), tests, args.limit)
                names = names if mutation["function"] else [*args.outside, *names]
                if not names:
                    end(mutation, "no test")
                    continue
                place = free.pop()
                (place / mutation["file"]).write_bytes(mutation["source"])
                for stale in (place / mutation["file"]).parent.glob(f"__pycache__/{Path(mutation['file']).stem}.*"):
                    stale.unlink()
                running[start(place, names, [], int(3 * args.limit) + 5)] = (
                    place,
                    mutation,
                    time.monotonic() + 30 * args.limit,
                )
                continue
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                for child in [child for child, (_, _, limit) in running.items() if time.monotonic() > limit]:
                    os.killpg(child, signal.SIGKILL)
                time.sleep(0.01)
                continue
            place, mutation, _ = running.pop(pid)
            shutil.copy2(ROOT / mutation["file"], place / mutation["file"])
            free.append(place)
            end(mutation, "killed" if os.waitstatus_to_exitcode(status) not in (0, 5, 70) else "survived")
    print(f"{number} mutations, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
