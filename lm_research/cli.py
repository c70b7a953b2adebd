"""The command-line face that verbs share: flags, help, and how mistakes are told.

A verb that runs from a config ends with

    if __name__ == "__main__":
        cli.run(main, verb="train", summary="Pre-trains a language model.")

and its `main(config, workdir)` sees only what has been checked. Every other verb wraps its work in `guarded`, and ends with
`cli.start(main)`.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from lm_research.common import disk, interrupts, streams
from lm_research.common.documents import json_value, short
from lm_research.common.flags import Parser
from lm_research.common.paths import path_of
from lm_research.common.texts import is_text
from lm_research.config import Config, check_key, describe, find, loading, overlay, resolve
from lm_research.config.draft import set_values
from lm_research.config.registries import VARIANTS
from lm_research.config.schema import names, not_of
from lm_research.config.variants import import_plugins
from lm_research.errors import (
    BUG,
    DONE,
    REPORTED_ERRORS,
    STOPPED_BY_SIGNAL,
    USER_ERROR,
    ConfigError,
    UserError,
    suggest,
)

Main = Callable[[Config, Path], int | None]

# Keys of the section tokenizer that only training one reads.
TO_TRAIN = ("type", "vocab_size", "lowercase", "sentinels")
# Flags that say where this process stands among those of a run; parallel/processes.py reads the variables.
_PLACE = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_FLAGS = ("--config", "--workdir", "--help", "--help_config", "--debug", *(f"--{name}" for name in _PLACE))
_LONGEST = 4000  # letters of a mistake's paragraph
_BOOLEANS = ("true", "false", "t", "f", "1", "0")  # what absl reads as one

_USAGE = """\
{summary}

  python -m lm_research.{verb} --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE.py[:ARG]     the run: a file of configs/, with an argument for its get_config where it takes one
  --config=RUN               or the directory of an earlier run, or the config.json in it
  --config.SECTION.KEY=VALUE change one key, for example --config.train.num_steps=200
  --workdir=DIR              where everything this run writes goes; the same command resumes it
  --coordinator=HOST:PORT    many processes, where they are not found by themselves (TPU pods, GKE, Slurm): the address
  --num_processes=N          of process 0, how many there are, and which this one is (from 0); start this command once
  --process_id=I             for each
  --help_config              every key with type, default and meaning
  --debug                    show the traceback of a mistake
"""


def run(main: Main, *, verb: str, summary: str) -> NoReturn:
    """Runs `main` on this process's command line and exits with its code; see `call`. A signal that `main` does not take ends it."""
    interrupts.watch("before the first step")
    start(lambda: call(main, sys.argv[1:], verb=verb, summary=summary))


def start(main: Callable[[], int | None]) -> NoReturn:
    """Runs a verb as this process, and exits with its code.

    A verb whose output nobody reads to its end (`| head`), or whose output has no room, goes on without it. The second is a mistake,
    told when all else is done.
    """
    streams.make_lossy()
    try:
        code: str | int | None = main()
    except SystemExit as left:  # of argparse
        code = left.code
    lost = streams.failure()
    if not code and lost is not None and not isinstance(lost, BrokenPipeError):
        print_error(
            f"Standard output cannot be written: {lost.strerror}. What the command writes to files of its own is whole. Send its output to "
            "another place."
        )
        code = USER_ERROR
    sys.exit(code)


def call(main: Main, argv: Sequence[str], *, verb: str, summary: str) -> int:
    """Parses `argv` (without the program's name), runs `main(config, workdir)` and returns the exit code.

    `main` returns an exit code, or None for success. Mistakes are printed as one paragraph; see `guarded`.
    """
    if {"--help", "-help", "-h"} & set(argv):
        return _show(_USAGE.format(verb=verb, summary=summary))
    if {"--help_config", "-help_config"} & set(argv):
        return _show(describe())
    return guarded(lambda: main(*parse(argv)), debug="--debug" in argv, argv=argv)


def parsed(parser: Parser, action: Callable[..., int | None], argv: Sequence[str] | None, *, rest: bool = False) -> int:
    """Runs `action` on what a parser makes of a command line, with `rest` on what it leaves too, and returns the exit code; see `guarded`."""
    argv = sys.argv[1:] if argv is None else list(argv)

    def run() -> int | None:
        return action(*(parser.parse_known_args(argv) if rest else [parser.parse_args(argv)]))

    return guarded(run, debug="--debug" in argv, argv=argv)


def guarded(action: Callable[[], int | None], *, debug: bool = False, argv: Sequence[str] | None = None) -> int:
    """Runs `action` and returns its exit code (None is success).

    A UserError is printed as one paragraph and gives exit code 2, and so does what the operating system refuses (see disk.py); a
    NonFiniteLoss gives 3, a DeviceFault 4, anything else is a bug: it keeps its traceback and gives 1. With `debug` the mistakes show
    their traceback as well. A signal with nothing to save is one line and 75. `argv` are the words of the command line, by default the
    process's: bytes that are not UTF-8 are refused.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal of another encoding cannot show
    try:
        with interrupts.raising_on_signal():
            _check_words(sys.argv[1:] if argv is None else argv)
            return action() or DONE
    except REPORTED_ERRORS as error:
        if debug:
            traceback.print_exc()
        print_error(str(error))
        return error.exit_code
    except interrupts.Interrupted:
        interrupts.write_message()
        return STOPPED_BY_SIGNAL
    except Exception as error:
        refused = disk.as_disk_error(error) or _without_memory(error)
        if debug or refused is None:
            traceback.print_exc()
        if refused is None:
            return BUG
        print_error(str(refused))
        return USER_ERROR


def _without_memory(error: Exception) -> UserError | None:
    """The error for people, if memory was asked for that is not there; None for any other."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    said = " ".join(str(error).split())[:200].rstrip(".") or "out of memory"
    return UserError(
        f"There is not enough memory: {said}. Take smaller batches, shorter texts, a smaller model or more devices."
    )


def json_word(text: str) -> Any:
    """The JSON value that a word of the command line is.

    Raises:
      ValueError: it is none.
      UserError: one of its texts holds half a character.
    """

    def refuse() -> None:
        raise UserError(f"{short(text)} holds half a character (a lone surrogate), which no text has. Take it out.")

    return json_value(text, on_surrogates=refuse)


def _check_words(argv: Sequence[str]) -> None:
    for word in argv:
        if not is_text(word):
            raise UserError(
                f"The argument {ascii(word[:80])} is no text in UTF-8. Write it so (LC_ALL=C.UTF-8 makes a terminal do it), or name the file "
                "by a link."
            )


def print_error(message: str) -> None:
    """Prints `error: message` on stderr as one paragraph: wrapped on a terminal, one line for a log or pipe."""
    words = (f"{word[:150]}...{word[-150:]}" if len(word) > 400 else word for word in f"error: {message}".split())
    paragraph = " ".join(words)
    if len(paragraph) > _LONGEST:
        paragraph = f"{paragraph[: _LONGEST // 2]} ... {paragraph[-_LONGEST // 2 :]}"
    paragraph = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in paragraph)
    if sys.stderr.isatty():
        width = min(shutil.get_terminal_size().columns, 100)
        paragraph = textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)
    print(paragraph, file=sys.stderr, flush=True)


def parse(argv: Sequence[str]) -> tuple[Config, Path]:
    """The resolved config and the working directory that a command line (without the program's name) asks for.

    The flags of many processes become the environment variables that mean the same.

    Raises:
      ConfigError: a missing, unknown or malformed flag, or a config that cannot be used.
    """
    loaded = _load(argv)
    pairs = _pairs(argv)
    for name in ("config", "workdir"):
        given = [value for flag, value in pairs if flag == name]
        if not given:
            example = {"config": "configs/quickstart.py", "workdir": "runs/quickstart"}[name]
            raise ConfigError(f"--{name} is missing. Add for example --{name}={example}; --help shows the usage.")
        if len(given) > 1:
            raise ConfigError(f"--{name} is given {len(given)} times ({', '.join(given)}). Keep one of them.")
    os.environ.update({variable: dict(pairs)[flag] for flag, variable in _PLACE.items() if flag in dict(pairs)})
    workdir = directory(dict(pairs)["workdir"])
    loaded = loaded or loading.load(dict(pairs)["config"])
    overrides = {flag.removeprefix("config."): value for flag, value in pairs if flag.startswith("config.")}
    config = resolve(_apply(loaded, overrides))
    _check_read(overrides, config)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read the global flags
    return config, workdir


def _load(argv: Sequence[str]) -> ConfigDict | None:
    """The config that a command line names once, else None. It comes before its other words, which may name what plug-ins register."""
    found: dict[str, list[str]] = {"config": [], "config.plugins": []}
    for place, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in found and (equals or place + 1 < len(argv)):
            found[name].append(value if equals else argv[place + 1])
    if len(found["config"]) != 1 or not found["config"][0]:
        return None
    loaded = loading.load(found["config"][0])
    for value in found["config.plugins"]:
        import_plugins(find("plugins").parse(value))
    return loaded


def _check_read(given: Mapping[str, str], config: Config) -> None:
    """Raises a ConfigError for flags that this run would not read. A config file may have such keys: recipes do."""
    for name in given:
        section, leaf = (*name.split("."), "")[:2]
        registry, settings = VARIANTS.get(section), getattr(config, section)
        if registry and settings and leaf not in registry.keys(chosen_name := registry.name_of(settings)):
            raise not_of(section, leaf, chosen_name)  # a task has chosen the objective
        if (
            section == "objective"
            and (task := config.task)
            and (not task.reads_objective or (leaf == "name" and given[name] != task.reads_objective))
        ):
            reads = (
                f"reads {section}.name={task.reads_objective}"
                if task.reads_objective
                else f"never reads the section {section}"
            )
            raise ConfigError(
                f"--config.{name}={given[name]} is set beside task.name={task.name}, which {reads}. Leave it out, or pre-train with "
                "--config.task.name=none."
            )
    unused = [f"config.tokenizer.{name}" for name in TO_TRAIN if f"tokenizer.{name}" in given]
    for key in ("train.init_from", "tokenizer.path"):
        section, name = key.split(".")
        if unused and (value := getattr(getattr(config, section), name)):
            raise ConfigError(
                f"--{unused[0]} is of a tokenizer to train, and none is trained beside {key}={value}, whose tokenizer is used. Leave out "
                f"{' and '.join(f'--{flag}' for flag in unused)}, or {key}."
            )


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """The flags as (name, value); knows `--name=value`, `--name value`, `--flag` and `--noflag`."""
    pairs, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument.strip("-") == "":
            raise ConfigError(_stray(argument))
        name, equals, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
        negated = name.removeprefix("no")
        if not equals and _is_switch(negated):
            value = "true" if name == negated else "false"
            if name == negated and rest and rest[0].lower() in _BOOLEANS:
                value = rest.pop(0)
            name, equals = negated, "="
        elif name == "debug":
            equals = "="
        else:
            _check_flag(name)
        if not equals:
            if not rest or _is_flag(rest[0]):
                meaning = f" {find(name.removeprefix('config.')).explanation}" if name.startswith("config.") else ""
                raise ConfigError(f"--{name} needs a value: write --{name}=VALUE.{meaning}")
            value = rest.pop(0)
        pairs.append((name, value))
    return pairs


def _is_switch(flag: str) -> bool:
    """Whether a flag is of a key that is true or false, so that it needs no value."""
    try:
        return flag.startswith("config.") and bool in find(flag.removeprefix("config.")).kinds
    except ConfigError:  # told by who reads it as another flag
        return False


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and argument.lstrip("-")[:1].isalpha()


def _stray(argument: str) -> str:
    message = f"Unexpected argument {argument!r}: everything here is a flag."
    path = argument.partition(":")[0]
    if path.endswith((".py", ".json")):
        return f"{message} Did you mean --config={argument}?"
    if argument.startswith("config."):
        return f"{message} Did you mean --{argument}?"
    return f"{message} Write --NAME=VALUE; --help shows the usage, and a value with spaces needs quotes."


def _check_flag(name: str) -> None:
    """Raises a ConfigError with a suggestion unless `name` is a flag that takes a value."""
    if name in ("config", "workdir", *_PLACE):
        return
    if name.startswith("config."):
        check_key(name.removeprefix("config."))
        return
    if name.startswith("noconfig."):
        check_key(name.removeprefix("noconfig."))
        raise ConfigError(f"--{name} is only for keys that are true or false. Write --{name.removeprefix('no')}=VALUE.")
    keys = names()
    for part in (name, name.partition(".")[2]):
        matches = [key for key in keys if part and (key == part or key.endswith("." + part))]
        if matches:
            fix = " or ".join(f"--config.{key}" for key in matches[:4])
            raise ConfigError(f"--{name} is not a flag. Keys of the run are written {fix}.")
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    raise ConfigError(f"--{shown} is not a flag. {suggest(f'--{shown}', _FLAGS)}")


def directory(text: str, flag: str = "--workdir") -> Path:
    """The directory that a flag names, `~` expanded; it need not exist yet.

    Raises:
      ConfigError: it is empty, a remote address, a file, or not to be written.
    """
    if "://" in text:
        raise ConfigError(
            f"{flag}={text} is a remote address, and runs write to a file system. Mount it (gcsfuse, s3fs, NFS) and "
            "give the mounted directory."
        )
    path = path_of(text, flag)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ConfigError(f"{flag}={text}: {existing} is a file, not a directory. Choose another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise ConfigError(
                f"{flag}={text}: {existing} is on a file system that is mounted read-only. What is there is as it was. Mount it for "
                "writing and run the same command again, or choose another place."
            )
        raise ConfigError(f"{flag}={text}: no permission to write in {existing}. Choose another place.")
    return path


def _apply(loaded: ConfigDict, overrides: Mapping[str, str]) -> Mapping[str, Any]:
    """`loaded` with the values of `--config.SECTION.KEY` flags, parsed by type, laid over it: first those that choose whose keys there are."""
    values: Mapping[str, Any] = set_values(loaded)
    choosers = {f"{section}.{registry.chooser}" for section, registry in VARIANTS.items()}
    for first in (True, False):
        changes: dict[str, Any] = {}
        for name in (name for name in overrides if (name in choosers) == first):
            section = name.partition(".")[0]
            variant = VARIANTS[section].chosen(values.get(section)) if section in VARIANTS and not first else None
            changes[name] = find(name, variant).parse(overrides[name])
        values = overlay(values, changes)
    return values


def _show(text: str) -> int:
    print(text, flush=True)
    return DONE
