"""`python -m lm_research.prepare --config=configs/quickstart.py --workdir=runs/quickstart --workers=8`.

Prepare the corpus of a run in advance: read, clean, train the tokenizer and tokenize, on several processes. `train` with the same
config then uses it. The same command resumes one that was killed, and the result does not depend on the number of workers.

`python -m lm_research.prepare --inspect=FOLDER` describes a prepared corpus and shows examples as a model sees them.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm

from lm_research import cli
from lm_research import config as config_lib
from lm_research.common import interrupts
from lm_research.config import Config
from lm_research.data import remote_cache
from lm_research.data.beam import Beam
from lm_research.data.corpus import Corpus, read_corpus
from lm_research.data.inspect import LEGEND, show_row
from lm_research.data.ngram import baselines
from lm_research.data.split import PARTS
from lm_research.data.store import MANIFEST, TokenStore
from lm_research.data.verify import Verification
from lm_research.data.workers import Processes, Runner, available_cpus
from lm_research.errors import DONE, ConfigError, DamagedStore, UserError

if TYPE_CHECKING:
    from lm_research.objectives.base import TextObjective

_USAGE = """\
Prepare the corpus of a run in advance, or describe a prepared corpus.

  python -m lm_research.prepare --config=configs/quickstart.py --workdir=runs/quickstart --workers=8
  python -m lm_research.prepare --inspect=FOLDER

  --config=FILE.py[:ARG]     config of the run, as for train; the sections data, clean and tokenizer are used
  --config.SECTION.KEY=VALUE change one key, for example --config.data.source=FOLDER
  --workdir=DIR              directory of the run; the corpus is written to DIR/data unless config.data.cache_dir is set
  --workers=N                number of processes (number of CPUs); the corpus does not depend on it
  --runner=RUNNER            Apache Beam runner instead of --workers: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner;
                             its machines need access to the corpus files and to --workdir or data.cache_dir
  --runner_options="..."     flags of the runner, for example "--project=P --region=R --temp_location=gs://B/tmp"
  --inspect=FOLDER           print sources, counts, n-gram baselines and examples of every objective for the corpus in
                             FOLDER (its path is printed when it is built); --config sets the objective's settings
  --help_config              list every key with type, default and meaning
  --debug                    show the traceback of errors
"""
_OWN = ("workers", "inspect", "runner", "runner_options")
_LINE_SECONDS = 15.0  # between lines of progress if standard error is not a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-help", "-h"} & set(argv):
        print(_USAGE)
        return DONE
    if {"--help_config", "-help_config"} & set(argv):
        return cli.call(lambda config, workdir: DONE, argv, command="prepare", summary="")
    return cli.guarded(lambda: _run(argv), debug="--debug" in argv, argv=argv)


def _run(argv: list[str]) -> int:
    rest, own = _take_own(argv)
    if "inspect" in own:
        named = any(flag == "--config" or flag.startswith("--config=") for flag in rest)
        config = cli.parse([*rest, "--workdir=."])[0] if named else None
        for line in inspect(remote_cache.local_folder(own["inspect"]), config):
            print(line, flush=True)
        return DONE
    has_workdir = any(flag == "--workdir" or flag.startswith("--workdir=") for flag in rest)
    config, workdir = cli.parse(rest if has_workdir else [*rest, "--workdir=."])
    if not has_workdir and not config.data.cache_dir:
        raise ConfigError(
            "--workdir is missing: the corpus is written to its data/. Give the --workdir of the training run, or a directory for the "
            "corpora of several runs as --config.data.cache_dir."
        )
    return prepare(config, workdir, _runner(own))


def prepare(config: Config, workdir: Path, runner: Runner) -> int:
    """Build the corpus unless it exists, and return the exit code."""
    from lm_research import tasks  # imports jax, which the workers do not need
    from lm_research.run.init_checkpoint import apply_init_checkpoint, load_init_checkpoint
    from lm_research.run.run_directory import first_free_path

    config = apply_init_checkpoint(load_init_checkpoint(config), config)
    kind = tasks.trainable_class(config)

    def open_whole() -> Corpus:
        corpus = kind.open_corpus(config, workdir, _log, runner, bars)
        Verification(corpus.stores, config.data.verify if config.data.verify == "off" else "full", _log)
        return corpus

    with interrupts.watching("before the corpus was finished"):
        try:
            corpus = open_whole()
        except DamagedStore as error:
            kept = first_free_path(error.folder.with_name(f"{error.folder.name}.damaged"))
            os.rename(error.folder, kept)
            _log(f"{error} It was moved to {kept}; the corpus is built again.")
            corpus = open_whole()
    folder = corpus.train.path.parent
    _log(f"digest {corpus.digest}\ninspect it with: python -m lm_research.prepare --inspect={folder}")
    return DONE


def _take_own(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate the flags of this command from the others; return (others, own)."""
    rest: list[str] = []
    own: dict[str, str] = {}
    flags = iter(argv)
    for flag in flags:
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in _OWN:
            rest.append(flag)
            continue
        own[name] = value if equals else next(flags, "")
        if not own[name]:
            raise ConfigError(f"--{name} needs a value: write --{name}=VALUE; --help shows the usage.")
    return rest, own


def _runner(own: dict[str, str]) -> Runner:
    if "runner" not in own:
        if "runner_options" in own:
            raise ConfigError(
                "--runner_options requires --runner, which is missing. Add for example --runner=DirectRunner."
            )
        return Processes(_workers(own.get("workers", "")))
    if "workers" in own:
        raise ConfigError("--workers are processes on this machine, and --runner has its own. Remove one of them.")
    return Beam(own["runner"], shlex.split(own.get("runner_options", "")))


def _workers(text: str) -> int:
    if not text:
        return available_cpus()
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--workers={text} is not a number of processes. Use 1 or more.")
    return int(text)


def _log(text: str) -> None:
    tqdm.tqdm.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def bars(title: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show progress as a bar on a terminal, else as a line every few seconds.

    Yields:
      A function that takes the amount of work just done: shards, or characters if `total` is None.
    """
    live = sys.stderr.isatty()
    unit = "char" if total is None else "shard"
    done, last_line = 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, last_line
        done += amount
        bar.update(amount)
        if not live and time.monotonic() - last_line > _LINE_SECONDS:
            last_line = time.monotonic()
            _log(f"{title}: {done:,}{'' if total is None else f' of {total:,}'} {unit}s")

    with tqdm.tqdm(
        desc=title, total=total, unit=unit, unit_scale=total is None, dynamic_ncols=True, disable=not live, leave=False
    ) as bar:
        yield advance


def inspect(folder: Path, config: Config | None = None) -> Iterator[str]:
    """Describe a prepared corpus in lines: its sources, its size, and examples of each objective.

    Args:
      folder: directory of a corpus, or of a part of one.
      config: config whose sections objective and data (max_length, packing) determine the examples; None shows sequences of 64 tokens.

    Raises:
      DataError: there is no corpus in the directory, or it is damaged.
      TokenizerError: its tokenizer is damaged.
    """
    from lm_research.objectives.base import OBJECTIVES

    corpus = read_corpus(folder.parent if folder.name in PARTS and (folder / MANIFEST).is_file() else folder)
    Verification(corpus.stores, "auto", _log)
    manifest = corpus.train.manifest
    tokenizer, roles = manifest.get("tokenizer", {}), corpus.tokenizer.roles
    yield f"corpus      {corpus.train.path.parent}, digest {corpus.digest[:16]}"
    yield (
        f"tokenizer   {tokenizer.get('kind', '?')}, {corpus.tokenizer.size:,} ids, digest {corpus.tokenizer.digest[:16]}; "
        + ", ".join(f"{role} {number} {corpus.tokenizer.pieces([number])[0]}" for role, number in roles.items())
    )
    yield "built with  " + ", ".join(f"{name} {version}" for name, version in manifest.get("built_with", {}).items())
    for entry in manifest.get("origin", []):
        yield from _describe_source(entry)
    for name, part in (("training", corpus.train), ("held out", corpus.validation)):
        yield from _describe_part(name, part)
    scores = baselines(corpus.train, corpus.validation)
    bits = corpus.validation.manifest.get("text_bytes")
    for name, score in scores.items():
        per_byte = f", {score.nats * score.tokens / math.log(2) / bits:.3f} bits a byte" if bits else ""
        yield f"{name}     perplexity {score.perplexity:,.2f} ({score.nats:.4f} nats a token{per_byte}) of the held-out text"
    yield f"reading     {LEGEND}"
    config = config or config_lib.resolve({"data": {"max_length": 64}})
    for name, objective in OBJECTIVES.items():
        yield ""
        yield from _show_objective(name, objective, config_lib.replace(config, objective={"name": name}), corpus)


def _describe_source(entry: dict[str, Any]) -> Iterator[str]:
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in entry["dropped"].items() if count)
    scrubbed = ", ".join(f"{count:,} {kind}" for kind, count in entry["scrubbed"].items() if count)
    yield f"source      {entry['source']}: {entry['documents']:,} documents, {entry['characters']:,} characters"
    yield (
        f"            left out: {dropped or 'none'} ({entry['dropped_characters']:,} characters); unreadable: "
        f"{entry['unreadable']:,}; replaced: {scrubbed or 'nothing'}"
    )


def _describe_part(name: str, part: TokenStore) -> Iterator[str]:
    documents = np.diff(np.asarray(part.sentence_starts)[np.asarray(part.document_starts)])
    median, upper = np.quantile(documents, [0.5, 0.95])
    rate = f" of {part.manifest['text_bytes'] / part.num_tokens:.2f} bytes" if "text_bytes" in part.manifest else ""
    yield (
        f"{name:<11} {part.num_documents:,} documents, {part.num_sentences:,} sentences, {part.num_tokens:,} tokens{rate}; tokens "
        f"a document: median {median:,.0f}, 95% under {upper:,.0f}, longest {documents.max():,}"
    )
    for source in part.source_names:
        entry = part.source(source)
        yield f"            {source}: {entry.num_documents:,} documents, {entry.num_tokens:,} tokens"


def _show_objective(name: str, kind: type[TextObjective], config: Config, corpus: Corpus) -> Iterator[str]:
    """Show the first example and one from the middle, or the reason why there are none."""
    try:
        examples = kind(config, corpus.tokenizer).examples(corpus.train, "train")
        index_B = np.unique([0, examples.num_examples // 2])
        batch = examples.batch(np.zeros_like(index_B), index_B)
    except UserError as error:
        yield f"{name}: not with this corpus and tokenizer. {error}"
        return
    yield f"{name}: {examples.num_examples:,} examples of up to {config.data.max_length} tokens"
    for row, index in enumerate(index_B.tolist()):
        yield f"  example {index}"
        yield from (f"    {line}" for line in show_row(batch, row, corpus.tokenizer))


if __name__ == "__main__":
    cli.start(main)
