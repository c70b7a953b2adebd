"""Description of a run to launch, shared by all launchers, from flags or a JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from lm_research.common.documents import check_fields, read_json, short
from lm_research.common.paths import path_of
from lm_research.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
_MAX_COUNT, _MAX_LENGTH = 10_000, 4096  # of machines or chips; of a value in characters


class LaunchError(UserError):
    """Error that stops a launch, with a message of one paragraph: what, where, the fix."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A run and the machines to run it on.

    Attributes:
      name: name of the run and of every resource created for it.
      train: arguments of `python -m lm_research.train`, including --config and --workdir. The working directory must be
        on storage that every machine can access.
      accelerator: type of one slice, for example v5litepod-16; on Slurm the number of GPUs per node.
      slices: number of slices (TPU) or nodes (Slurm).
      project, zone, version: Google Cloud project and zone, and runtime version of a TPU VM.
      spot: use cheaper machines that can be pre-empted.
      secrets: names of environment variables that the run needs; their values appear in no file, argument or log here.
      image: container image, on GKE.
      topology, hosts, chips: of a slice on GKE: its shape (4x4), number of machines, and chips per machine.
    """

    name: str
    train: tuple[str, ...]
    accelerator: str = "v5litepod-16"
    slices: int = 1
    project: str = ""
    zone: str = ""
    version: str = "v2-alpha-tpuv5-lite"
    spot: bool = False
    secrets: tuple[str, ...] = ()
    image: str = ""
    topology: str = "4x4"
    hosts: int = 4
    chips: int = 4

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise LaunchError(
                f"--name={self.name}: use 1 to 40 lower-case letters, digits and dashes, and begin with a letter."
            )
        for name in ("slices", "hosts", "chips"):
            if not 1 <= getattr(self, name) <= _MAX_COUNT:
                raise LaunchError(
                    f"--{name}={short(getattr(self, name))} must be at least 1, and at most {_MAX_COUNT}."
                )
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            for text in given if isinstance(given, tuple) else (given,):
                if isinstance(text, str) and (not text.isprintable() or len(text) > _MAX_LENGTH):
                    raise LaunchError(
                        f"--{field.name}={short(text)} has unprintable characters or more than {_MAX_LENGTH} characters. Remove them or shorten it."
                    )
        for name in self.secrets:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise LaunchError(
                    "--secret takes the name of an environment variable, never its value; one of those given is not a valid name. "
                    "For example, write --secret=WANDB_API_KEY and set the variable here."
                )

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one per slice."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{number}" for number in range(self.slices)]

    def command(self, python: str = "python3") -> str:
        """Return the training command, quoted for a shell."""
        return shlex.join([python, "-m", "lm_research.train", *self.train])


_KINDS = {
    field.name: {"str": str, "int": int, "bool": bool}.get(str(field.type), list[str])
    for field in dataclasses.fields(Description)
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a description; --run=FILE.json sets any of them by name, and flags override the file."""
    parser.add_argument("--run", metavar="FILE.json", help="file with the description")
    for field in dataclasses.fields(Description):
        if field.name == "train":
            continue
        if field.name == "secrets":
            parser.add_argument("--secret", dest="secrets", action="append", metavar="NAME")
        elif field.name == "spot":
            parser.add_argument("--spot", action="store_true", default=None)
        else:
            kind = int if isinstance(field.default, int) else str
            parser.add_argument(f"--{field.name}", type=kind)


def from_flags(flags: argparse.Namespace, train: Sequence[str]) -> Description:
    """Make the description from flags and file; `train` has the arguments after --.

    Raises:
      LaunchError: the file or a value cannot be used.
    """
    names = {field.name for field in dataclasses.fields(Description)}
    values = {}
    if flags.run:
        values = read_json(
            path_of(flags.run, "--run", error=LaunchError),
            error=LaunchError,
            fix="The description cannot be read; fix the file.",
        )
        if values.keys() - names:
            unknown = ", ".join(sorted(values.keys() - names))
            raise LaunchError(f"--run={flags.run}: unknown {unknown}. Valid: {', '.join(sorted(names))}.")
        check_fields(
            values, {**_KINDS, "train": list[str], "secrets": list[str]}, f"--run={flags.run}", error=LaunchError
        )
        values = {name: value for name, value in values.items() if value is not None}
    values |= {name: getattr(flags, name) for name in names - {"train"} if getattr(flags, name) is not None}
    if train:
        values["train"] = train
    if not values.get("name"):
        raise LaunchError("--name is missing. Name the run, for example --name=bert-base.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Description(**{"train": (), **values})


def split_train(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at --; return the arguments before and after it."""
    argv = list(argv)
    return (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])


def print_output(
    argv: Sequence[str], parser: argparse.ArgumentParser, make: Callable[[Description, argparse.Namespace], str]
) -> int:
    """Print the output of `make` for the run that a command line describes, and return the exit code.

    `parser` has the launcher's own flags; those of all launchers are added.
    """
    own, train = split_train(argv)
    add_flags(parser)
    flags = parser.parse_args(own)
    try:
        print(make(from_flags(flags, train), flags), end="")
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_wheel(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Build the package from this checkout in an empty directory; return the wheel and its SHA-256.

    Raises:
      LaunchError: the build failed; the message contains the end of pip's output.
    """
    source = folder / "source"  # a copy: in the checkout setuptools would include files from an earlier build
    shutil.copytree(ROOT / "lm_research", source / "lm_research", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("lm_research-*.whl"), key=os.path.getmtime)
    if done.returncode or not wheels:
        raise LaunchError(f"The wheel cannot be built: {done.stderr.strip()[-500:]}")
    return wheels[-1], hashlib.sha256(wheels[-1].read_bytes()).hexdigest()
