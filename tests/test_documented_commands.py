"""Every command line and flag of README.md and docs/ is one that the real parsers accept."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

from lm_research import cli, generate, prepare
from lm_research.decoding.generation_config import NAMES as NAMES_OF_DECODING
from lm_research.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"
# Flags of other programs: TensorBoard's and XLA's.
BEAM = {"environment_type", "job_endpoint", "port", "sdk_worker_parallelism"}
FOREIGN = {"logdir", "xla_force_host_platform_device_count", "xla_gpu_deterministic_ops"} | BEAM
HARNESS = re.compile(r".*-m lm_research\.interop\.lm_eval .*")  # takes the flags of lm-evaluation-harness
NAMED = re.compile(r"python -m ((?:lm_research|experiments)[\w.]*)|python (launch/\w+\.py)")


class Accepted(BaseException):
    """The parser has accepted a command line; nothing is to be run. Not an Exception, so that no command handles it."""


def commands(text: str) -> list[list[str]]:
    """Words of our own command lines in a text's code blocks and code spans, starting at the module or script."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + spans
    found = []
    for line in lines:
        for part in line.split("&&"):
            if (named := NAMED.search(part)) and not HARNESS.match(part):
                words = shlex.split(part[named.start() :], comments=True)
                found.append([word.strip("[]") for word in words[words.index("python") + 1 :] if word != "-m"])
    return found


def main_of(name: str) -> Callable[[Sequence[str]], int]:
    """What runs a command, given as `lm_research.train` or `launch/local_pod.py`, on a command line."""
    if name.endswith(".py"):
        return runpy.run_path(str(ROOT / name))["main"]
    module = importlib.import_module(name)
    if name == "lm_research.train":
        return lambda argv: cli.call(module.main, argv, command="train", summary="")
    if not inspect.signature(module.main).parameters:
        return lambda argv: with_argv(name, argv, module.main)
    return module.main


def with_argv(name: str, argv: Sequence[str], main: Callable[[], int]) -> int:
    """Run a main that reads sys.argv itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *argv])
        return main()


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every parser parse as usual, and then raise Accepted; the environment variables that some set are restored."""
    parse_args, parse, parsed = argparse.ArgumentParser.parse_args, cli.parse, cli.parsed

    def accept(function: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> None:
            function(*args, **kwargs)
            raise Accepted

        return run

    def with_rest(parser: argparse.ArgumentParser, action: Callable, argv: Sequence[str], *, rest: bool = False) -> int:
        def check(_: argparse.Namespace, others: Sequence[str]) -> None:
            if parser.prog.endswith("generate"):
                generate.flags(others)
            elif parser.prog.endswith("plan"):
                cli.parse([*others, "--workdir=."])
            elif others:
                parser.error(f"unrecognized arguments: {others}")
            raise Accepted

        return parsed(parser, check if rest else action, argv, rest=rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept(parse_args))
    monkeypatch.setattr(cli, "parse", accept(parse))
    monkeypatch.setattr(cli, "parsed", with_rest)
    monkeypatch.setattr(prepare, "inspect", accept(lambda *_: None))
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ):
        yield


def accepted(name: str, argv: Sequence[str]) -> bool:
    """Whether the real parser of a command accepts a command line; `--help` and `--help_config` print and return 0."""
    try:
        return main_of(name)(argv) == 0
    except Accepted:
        return True


LINES = sorted({tuple(words) for text in TEXTS.values() for words in commands(text)})


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_command_lines(words: tuple[str, ...], parse_only: None) -> None:
    """A config or directory left open is the quick start's."""
    name, *argv = (QUICKSTART if word == "--config=..." else word for word in words)
    if argv or name.endswith("prepare"):
        assert accepted(name, argv or [QUICKSTART, "--workdir=runs/x"])


NAMES = sorted({words[0] for words in LINES})
FLAG = r"--(?!config\.|no)([a-z][\w-]*)"


def help_of(name: str) -> argparse.ArgumentParser | str:
    """The parser whose help a command prints; the text where that is not argparse's."""
    parsers, out = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "print_help", lambda parser: parsers.append(parser))
        assert main_of(name)(["--help"]) == 0
    return parsers[0] if parsers else out.getvalue()


def usage_of(name: str) -> str:
    """The usage that argparse makes of a command's flags; of the two parsers that are not argparse's, their `--help`."""
    found = help_of(name)
    return found if isinstance(found, str) else found.format_usage()


@functools.cache
def flags_of(name: str) -> set[str]:
    """Flags of a command; of `generate` those of decoding too."""
    return (
        set(re.findall(FLAG, usage_of(name)))
        | {"help"}
        | (set(NAMES_OF_DECODING) if name.endswith("generate") else set())
    )


@pytest.mark.parametrize("name", ["lm_research.train", "lm_research.prepare"])
def test_flags_in_usage_written_by_hand(name: str, parse_only: None) -> None:
    """The parsers of these two are not argparse's, which writes its own help."""
    for flag in re.findall(r"^ +--(\w+=[\w/.:]+)", usage_of(name), flags=re.MULTILINE):
        key, value = flag.split("=")
        value = "1" if value.isupper() and key not in ("config", "workdir") else value
        argv = [QUICKSTART if key == "config" else f"--{key}={value}"]
        more = [word for word in (QUICKSTART, "--workdir=runs/x") if not word.startswith(f"--{key}=")]
        assert accepted(name, argv if key == "inspect" else argv + more), flag


@pytest.mark.parametrize("file", TEXTS)
def test_flags_in_prose_are_those_of_a_command_named_before(file: str) -> None:
    """A flag is one of train or of a command that its section (or page) has named so far."""
    words = {name.removesuffix(".py").rpartition("/")[2].removeprefix("lm_research."): name for name in NAMES}
    choices = "|".join(map(re.escape, words))
    named = re.compile(rf"`({choices})\b(?!\.)|-m lm_research\.({choices})\b|(?:-m |launch/)({choices})\b")
    for section in re.split(r"^## ", HARNESS.sub("", TEXTS[file]), flags=re.MULTILINE):
        here = {"lm_research.train"}
        for paragraph in re.split(r"\n\n|\n(?=[|#-] )", section):
            here |= {words[next(filter(None, one))] for one in named.findall(paragraph)}
            lacking = set(re.findall(FLAG, paragraph)) - FOREIGN - set().union(*map(flags_of, here))
            assert not lacking, f"no flag of {sorted(here)}: {sorted(lacking)} in: {paragraph}"


def test_flags_next_to_the_name_of_a_command() -> None:
    """`convert --to hf`, `compare --assert-equal`, ..."""
    for text in TEXTS.values():
        for word, flag in re.findall(rf"`(\w+) {FLAG}", text):
            if (name := f"lm_research.{word}") in NAMES:
                assert flag in flags_of(name), (word, flag)


OWN = [name for name in NAMES if name not in ("lm_research.train", "lm_research.prepare")]


@pytest.mark.parametrize("name", OWN)
def test_defaults_are_those_that_help_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number at the end of a flag's help, in parentheses, is its default."""
    monkeypatch.setenv("COLUMNS", "1000")
    parser = help_of(name)
    for flag, number in re.findall(
        r"^  --([\w-]+)(?:.|\n {8,})*?\(([\d.]+)(?::.*)?\)$", parser.format_help(), flags=re.MULTILINE
    ):
        assert str(parser.get_default(flag.replace("-", "_"))).removesuffix(".0") == number, flag


# What a number may be, of every flag that has a range.
RANGES = {
    "lm_research.evaluate": {"batch_size": "whole 1 1048576", "resamples": "whole 2 1000000"},
    "lm_research.generate": {"batch_size": "whole 1 1048576"},
    "lm_research.predict": {
        "batch_size": "whole 1 1048576", "num_processes": "whole 1 1048576", "process_id": "whole 0 1048576",
    },
    "lm_research.convert": {"average": "whole 1 1000", "max-shard-gb": "number 1e-06 1e+06"},
    "lm_research.plan": {"slices": "whole 1 100000", "price": "number 0 1e+15", "scaling": "whole 1 1000000"},
    "lm_research.serve": {
        "port": "whole 0 65535", "slots": "whole 1 4096", "length": "whole 2 1048576", "max_tokens": "whole 1 1048576",
        "max_queue": "whole 0 65536", "max_seconds": "number 1 86400", "max_body_bytes": "whole 1 1073741824",
        "max_connections": "whole 1 65536", "read_seconds": "number 0.1 86400", "drain_seconds": "number 1 86400",
    },
    "experiments.run": {"workers": "whole 1 1024"},
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_ranges_of_flags(name: str, capsys: pytest.CaptureFixture) -> None:
    """As the message for a word that is not a number gives them; tests/common/test_flags.py tests their ends."""
    found = {}
    for flag in sorted(flags_of(name)) if name in RANGES else ():
        try:
            help_of(name).parse_args([f"--{flag}", "x"])
        except UserError as error:
            if match := re.search(r"'x' is not a (whole number|number) from (\S+) to (\S+?)\.? ", str(error)):
                found[flag] = f"{match[1].split()[0]} {match[2]} {match[3]}"
        except SystemExit:
            pass
    assert found == RANGES.get(name, {})
