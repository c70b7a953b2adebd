"""Command-line interface shared by all commands: flags, help and error reporting.

A command that runs from a config ends with

    if __name__ == "__main__":
        cli.run(main, command="train", summary="Pre-train a language model.")

and its `main(config, workdir)` receives checked values. All other commands wrap their work in `guarded` and end with
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
from lm_research.common.paths import is_remote, path_of
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

# Keys of the section tokenizer that have an effect only when a tokenizer is trained.
TO_TRAIN = ("type", "vocab_size", "vocabulary", "lowercase", "sentinels")
# Flags that identify this process among those of a run, and the variables that parallel/processes.py reads.
_PROCESS_FLAGS = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_FLAGS = ("--config", "--workdir", "--help", "--help_config", "--debug", *(f"--{name}" for name in _PROCESS_FLAGS))
_LONGEST = 4000  # characters of an error message
_BOOLEANS = ("true", "false", "t", "f", "1", "0")  # as absl accepts them

_USAGE = """\
{summary}

  python -m lm_research.{command} --config=configs/quickstart.py --workdir=runs/quickstart

  --config=FILE.py[:ARG]     config file, such as those in configs/, with an optional argument for its get_config
  --config=RUN               or the directory of an earlier run, or its config.json
  --config.SECTION.KEY=VALUE change one key, for example --config.train.num_steps=200
  --workdir=DIR              output directory of the run, also gs:// or s3://; the same command resumes it
  --coordinator=HOST:PORT    runs of several processes that cannot be detected (as they are on TPU pods, GKE and Slurm):
  --num_processes=N          address of process 0, number of processes, and number of this one, from 0. Start the
  --process_id=I             command once per process.
  --help_config              list every key with type, default and meaning
  --debug                    show the traceback of errors
"""


def run(main: Main, *, command: str, summary: str) -> NoReturn:
    """Run `main` on this process's command line and exit with its code; see `call`. Signals that `main` does not handle end it."""
    interrupts.watch("before the first step")
    start(lambda: call(main, sys.argv[1:], command=command, summary=summary))


def start(main: Callable[[], int | None]) -> NoReturn:
    """Run a command as this process and exit with its code.

    If standard output is closed (`| head`) or its disk is full, the command continues without it. A full disk is reported as an
    error at the end.
    """
    streams.make_lossy()
    try:
        code: str | int | None = main()
    except SystemExit as error:  # of argparse
        code = error.code
    lost = streams.failure()
    if not code and lost is not None and not isinstance(lost, BrokenPipeError):
        print_error(
            f"Standard output cannot be written: {lost.strerror}. The command's files are complete. Redirect its output to another place."
        )
        code = USER_ERROR
    sys.exit(code)


def call(main: Main, argv: Sequence[str], *, command: str, summary: str) -> int:
    """Parse `argv` (without the program's name), run `main(config, workdir)` and return the exit code.

    `main` returns an exit code, or None for success. Errors are printed as one paragraph; see `guarded`.
    """
    if {"--help", "-help", "-h"} & set(argv):
        return _show(_USAGE.format(command=command, summary=summary))
    if {"--help_config", "-help_config"} & set(argv):
        return _show(describe())
    return guarded(lambda: main(*parse(argv)), debug="--debug" in argv, argv=argv)


def parsed(parser: Parser, action: Callable[..., int | None], argv: Sequence[str] | None, *, rest: bool = False) -> int:
    """Run `action` on the parsed command line and return the exit code; see `guarded`.

    Args:
      parser: parser of the command's flags.
      action: takes the parsed arguments, and with `rest` also the list of arguments that the parser does not have.
      argv: command line without the program's name; None is that of the process.
      rest: whether to pass unparsed arguments to `action`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)

    def run() -> int | None:
        return action(*(parser.parse_known_args(argv) if rest else [parser.parse_args(argv)]))

    return guarded(run, debug="--debug" in argv, argv=argv)


def guarded(action: Callable[[], int | None], *, debug: bool = False, argv: Sequence[str] | None = None) -> int:
    """Run `action` and return its exit code (None is success).

    A UserError is printed as one paragraph and gives exit code 2, as do errors of the operating system (see disk.py). A
    NonFiniteLoss gives 3, a DeviceFault 4. Anything else is a bug: it is printed with its traceback and gives 1. A signal with nothing
    to save prints one line and gives 75.

    Args:
      action: the work of the command.
      debug: whether to print the traceback of every error.
      argv: the command line, by default that of the process; arguments that are not UTF-8 are refused.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    try:
        with interrupts.raising_on_signal():
            _check_encoding(sys.argv[1:] if argv is None else argv)
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
    """Return the UserError for an allocation that failed; None for any other error."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    cause = " ".join(str(error).split())[:200].rstrip(".") or "out of memory"
    return UserError(
        f"There is not enough memory: {cause}. Use smaller batches, shorter texts, a smaller model or more devices."
    )


def json_word(text: str) -> Any:
    """Parse an argument of the command line as JSON.

    Raises:
      ValueError: it is not JSON.
      UserError: one of its strings has a lone surrogate.
    """

    def refuse() -> None:
        raise UserError(f"{short(text)} has half a character (a lone surrogate), which is not valid text. Remove it.")

    return json_value(text, on_surrogates=refuse)


def _check_encoding(argv: Sequence[str]) -> None:
    for word in argv:
        if not is_text(word):
            raise UserError(
                f"The argument {ascii(word[:80])} is not valid UTF-8. Encode it as UTF-8 (LC_ALL=C.UTF-8 makes a terminal do so), or use "
                "a link to the file."
            )


def print_error(message: str) -> None:
    """Print `error: message` on stderr as one paragraph: wrapped on a terminal, one line in a log or pipe."""
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
    """Parse a command line (without the program's name) into the resolved config and the working directory.

    The flags of runs with several processes set the corresponding environment variables.

    Raises:
      ConfigError: a missing, unknown or malformed flag, or a config that cannot be used.
    """
    loaded = _load(argv)
    pairs = _pairs(argv)
    for name in ("config", "workdir"):
        values = [value for flag, value in pairs if flag == name]
        if not values:
            example = {"config": "configs/quickstart.py", "workdir": "runs/quickstart"}[name]
            raise ConfigError(f"--{name} is missing. Add for example --{name}={example}; --help shows the usage.")
        if len(values) > 1:
            raise ConfigError(f"--{name} is given {len(values)} times ({', '.join(values)}). Keep one of them.")
    os.environ.update({variable: dict(pairs)[flag] for flag, variable in _PROCESS_FLAGS.items() if flag in dict(pairs)})
    workdir = directory(dict(pairs)["workdir"], bucket=True)
    loaded = loaded or loading.load(dict(pairs)["config"])
    overrides = {flag.removeprefix("config."): value for flag, value in pairs if flag.startswith("config.")}
    config = resolve(_apply(loaded, overrides))
    _check_used(overrides, config)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read the global flags
    return config, workdir


def _load(argv: Sequence[str]) -> ConfigDict | None:
    """Load the config of a command line, or return None unless --config occurs exactly once.

    This happens before the other flags are parsed, because they may name variants that plug-ins register.
    """
    found: dict[str, list[str]] = {"config": [], "config.plugins": []}
    for index, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in found and (equals or index + 1 < len(argv)):
            found[name].append(value if equals else argv[index + 1])
    if len(found["config"]) != 1 or not found["config"][0]:
        return None
    loaded = loading.load(found["config"][0])
    for value in found["config.plugins"]:
        import_plugins(find("plugins").parse(value))
    return loaded


def _check_used(overrides: Mapping[str, str], config: Config) -> None:
    """Raise a ConfigError for flags that have no effect in this run. Config files may have such keys, as recipes do."""
    for name in overrides:
        section, leaf = (*name.split("."), "")[:2]
        registry, settings = VARIANTS.get(section), getattr(config, section)
        if registry and settings and leaf not in registry.keys(chosen_name := registry.name_of(settings)):
            raise not_of(section, leaf, chosen_name)  # a task has chosen the objective
        if (
            section == "objective"
            and (task := config.task)
            and (not task.reads_objective or (leaf == "name" and overrides[name] != task.reads_objective))
        ):
            uses = (
                f"uses {section}.name={task.reads_objective}"
                if task.reads_objective
                else f"does not use the section {section}"
            )
            raise ConfigError(
                f"--config.{name}={overrides[name]} is set together with task.name={task.name}, which {uses}. Remove it, or pre-train with "
                "--config.task.name=none."
            )
    unused = [f"config.tokenizer.{name}" for name in TO_TRAIN if f"tokenizer.{name}" in overrides]
    for key in ("train.init_from", "tokenizer.path"):
        section, name = key.split(".")
        if unused and (value := getattr(getattr(config, section), name)):
            raise ConfigError(
                f"--{unused[0]} is for training a tokenizer, but {key}={value} provides one. Remove "
                f"{' and '.join(f'--{flag}' for flag in unused)}, or {key}."
            )


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Parse flags into pairs (name, value), from the forms `--name=value`, `--name value`, `--flag` and `--noflag`."""
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
    """Return whether a flag sets a boolean key and so needs no value."""
    try:
        return flag.startswith("config.") and bool in find(flag.removeprefix("config.")).kinds
    except ConfigError:  # reported by _check_flag
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
    """Raise a ConfigError with a suggestion unless `name` is a flag that takes a value."""
    if name in ("config", "workdir", *_PROCESS_FLAGS):
        return
    if name.startswith("config."):
        check_key(name.removeprefix("config."))
        return
    if name.startswith("noconfig."):
        check_key(name.removeprefix("noconfig."))
        raise ConfigError(
            f"--{name}: only boolean keys have a form with `no`. Write --{name.removeprefix('no')}=VALUE."
        )
    keys = names()
    for part in (name, name.partition(".")[2]):
        matches = [key for key in keys if part and (key == part or key.endswith("." + part))]
        if matches:
            fix = " or ".join(f"--config.{key}" for key in matches[:4])
            raise ConfigError(f"--{name} is not a flag. Keys of the run are written {fix}.")
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    raise ConfigError(f"--{shown} is not a flag. {suggest(f'--{shown}', _FLAGS)}")


def directory(text: str, flag: str = "--workdir", *, bucket: bool = False) -> Path:
    """Return the directory that a flag names, with `~` expanded, or with `bucket` a gs:// or s3:// address; it need not exist yet.

    Raises:
      ConfigError: it is empty, another address, a file, or not writable.
    """
    if "://" in text and not (bucket and is_remote(text)):
        kinds = "a file system, gs:// or s3://" if bucket else "a file system"
        raise ConfigError(
            f"{flag}={text} is a remote address, but this writes to {kinds}. Mount it (gcsfuse, s3fs, NFS) and give the mounted directory."
        )
    path = path_of(text, flag)
    if is_remote(path):
        return path
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ConfigError(f"{flag}={text}: {existing} is a file, not a directory. Choose another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise ConfigError(
                f"{flag}={text}: {existing} is on a file system that is mounted read-only. Nothing was changed. Mount it with write "
                "access and run the same command again, or choose another place."
            )
        raise ConfigError(f"{flag}={text}: no permission to write in {existing}. Choose another place.")
    return path


def _apply(loaded: ConfigDict, overrides: Mapping[str, str]) -> Mapping[str, Any]:
    """Apply `--config.SECTION.KEY` flags, parsed by type, to a config; those that choose variants come first, because they determine the keys."""
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
