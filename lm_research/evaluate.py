"""`python -m lm_research.evaluate --model DIR --suite FILE_OR_NAME --output DIR`: evaluate a model on a suite of tasks.

    ... --model runs/sentiment --suite suite.yaml --output results/sentiment
    ... --model runs/seed0 --model runs/seed1 --model runs/seed2 --suite suite.yaml --output results/three_seeds
    ... --model 'runs/{task}' --suite glue --output results/glue        a separate model for each task
    ... --compare results/A results/B [--output DIR]                    test whether the difference is significant

A suite lists tasks with their name, kind, data, fields and metric; see docs/evaluation.md. The output has a prediction for every example
(TASK/predictions.jsonl), results.json, results.md and index.html, which lists the model's errors. The same command resumes an
evaluation that was interrupted, and produces the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence

from lm_research import cli
from lm_research.common import flags
from lm_research.common.bucket_copies import BucketCopy, names
from lm_research.common.disk import write_atomically
from lm_research.common.paths import is_remote
from lm_research.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = flags.Parser(
        prog="python -m lm_research.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=flags.path_text,
        help="fine-tuned run or model directory; {task} is replaced by the task's name; repeat the flag for several seeds",
    )
    parser.add_argument("--suite", help=".yaml, .json or .py file that lists tasks, or the name of a built-in suite")
    parser.add_argument("--output", type=flags.path, help="output directory")
    parser.add_argument("--compare", nargs=2, type=flags.path, metavar=("A", "B"), help="outputs of two evaluations")
    parser.add_argument("--batch_size", type=flags.bounded(int, 1, 2**20), default=32, help="examples per batch (32)")
    parser.add_argument(
        "--resamples",
        type=flags.bounded(int, 2, 10**6),
        default=1000,
        help="number of resamples of the bootstrap and permutation tests (1000)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of parameters and computation"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Evaluate or compare as the arguments specify; raise a UserError if that is not possible."""
    if args.compare:
        _compare(args)
        return
    missing = [f"--{name}" for name in ("model", "suite", "output") if not getattr(args, name)]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing. Give a model, a suite and an output; --help shows examples.")
    from lm_research.evaluation import page, results, runner  # after the arguments are checked: they load JAX
    from lm_research.evaluation.suite import load_suite
    from lm_research.run.compile_cache import use_compile_cache
    from lm_research.run.run_directory import lock

    use_compile_cache()
    entries = load_suite(args.suite, runner.KINDS)
    with (
        lock(args.output, "--output") if is_remote(args.output) else contextlib.nullcontext(),
        BucketCopy(args.output, also=[name for name in names(args.output) if not name.startswith(".lock/")]) as copy,
    ):
        plan = runner.EvalJob(entries, args.model, copy.folder, args.batch_size, args.dtype)
        runner.run(plan, lambda line: print(copy.named(line), file=sys.stderr))
        scorers = {entry.name: results.read_scorers(plan, entry) for entry in entries}
        found = results.summarize(plan, scorers, args.resamples)
        page.write(plan, found, scorers)
        print(copy.named(results.write(plan, found)))


def _compare(args: argparse.Namespace) -> None:
    from lm_research.evaluation import comparison

    a, b = args.compare
    found = comparison.compare(a, b, args.resamples)
    text = comparison.table(found)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "comparison.json", json.dumps(found, indent=1) + "\n")
        write_atomically(args.output / "comparison.md", text)
    print(text)


if __name__ == "__main__":
    cli.start(main)
