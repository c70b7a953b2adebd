"""Description of a run to launch, shared by all launchers, from flags or a JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch.chips import Slice, find_slice
from launch.errors import LaunchError
from lm_research.common.documents import check_fields, read_json, short
from lm_research.common.paths import path_of

_MAX_COUNT = 10_000  # of machines or chips
_MAX_NAME, _MAX_LENGTH = 300, 4096  # characters of a name, and of an argument of training or a repeated value
_DURATION = r"[1-9][0-9]{0,5}[smhd]"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_LABEL = r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}"


def _field(default: Any, help: str, flag: str = "") -> Any:
    """Return a field with its help text; a tuple's flag is given once per value."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag})


@dataclasses.dataclass(frozen=True)
class Description:
    """A run and the machines to run it on. The help of the flags describes the fields; `train` has the arguments of training."""

    name: str
    train: tuple[str, ...]
    accelerator: str = _field(
        "v5litepod-16", "one slice, as v5litepod-16 or v5e:4x4; on Slurm the number of GPUs per node"
    )
    topology: str = _field("", "chips along each side of a slice, if the accelerator does not say it")
    chips: int = _field(0, "chips per machine, for a shape that exists on two kinds of machines")
    slices: int = _field(1, "number of slices; on Slurm of nodes")
    project: str = _field("", "Google Cloud project")
    zone: str = _field("", "zone, such as us-west4-a")
    version: str = _field("", "runtime version of the TPU VMs (chosen by the chip)")
    spot: bool = _field(False, "use cheaper machines that can be pre-empted")
    reserved: bool = _field(False, "use the project's reservation")
    flex_start: str = _field("", "flex-start: machines that end after at most so long, such as 24h (gcloud alpha)")
    valid_until: str = _field("", "give up the request if it is not served within, such as 6h")
    network: str = _field("", "network of the machines")
    subnetwork: str = _field("", "subnetwork of the machines")
    internal_ips: bool = _field(False, "no external addresses: launch from a machine of the same network")
    service_account: str = _field("", "account of the machines; on GKE the Kubernetes service account")
    labels: tuple[str, ...] = _field((), "a label, NAME=VALUE", "label")
    data_disks: tuple[str, ...] = _field((), "a disk of the same zone to attach, NAME or NAME:read-only", "data_disk")
    secrets: tuple[str, ...] = _field((), "name of a variable with a secret, which the run needs", "secret")
    env: tuple[str, ...] = _field((), "a variable for training, NAME=VALUE", "env")
    xla_flags: tuple[str, ...] = _field((), "an option of XLA for all programs of training, NAME=VALUE", "xla_flag")
    image: str = _field("", "container image with this package and its tpu extra")
    cluster: str = _field("", "name of the GKE cluster")
    queue: str = _field("", "Kueue's LocalQueue")
    priority: str = _field("", "priority class: Kueue's with a queue, otherwise Kubernetes'")
    volumes: tuple[str, ...] = _field((), "what to mount, CLAIM:/PATH or gs://BUCKET:/PATH", "volume")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise LaunchError(
                f"--name={short(self.name)}: use 1 to 40 lower-case letters, digits and dashes, and begin with a letter."
            )
        if not 1 <= self.slices <= _MAX_COUNT:
            raise LaunchError(f"--slices={short(self.slices)} must be at least 1, and at most {_MAX_COUNT}.")
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            limit = _MAX_LENGTH if isinstance(given, tuple) else _MAX_NAME
            for text in given if isinstance(given, tuple) else (given,):
                if isinstance(text, str) and (not text.isprintable() or len(text) > limit):
                    raise LaunchError(
                        f"--{field.metadata.get('flag') or field.name}={short(text)} has unprintable characters or more than "
                        f"{limit} characters. Remove them or shorten it."
                    )
        self._check_place()
        self._check_pairs()

    def _check_place(self) -> None:
        if self.project and not re.fullmatch(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", self.project):
            raise LaunchError(
                f"--project={self.project} is not a project ID: 6 to 30 lower-case letters, digits and dashes, beginning with a "
                "letter. `gcloud projects list` prints them."
            )
        if self.zone and not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z0-9]+", self.zone):
            region = re.fullmatch(r"[a-z]+-[a-z]+[0-9]+", self.zone)
            why = (
                f"is a region; add the zone's letter, as in {self.zone}-a"
                if region
                else "is not a zone, such as us-west4-a"
            )
            raise LaunchError(f"--zone={self.zone} {why}. `gcloud compute tpus locations list` prints the zones.")
        chosen = [flag for flag in ("spot", "reserved", "flex_start") if getattr(self, flag)]
        if len(chosen) > 1:
            raise LaunchError(f"--{' and --'.join(chosen)} exclude each other: a request has one source of capacity.")
        for flag in ("flex_start", "valid_until"):
            if getattr(self, flag) and not re.fullmatch(_DURATION, getattr(self, flag)):
                raise LaunchError(f"--{flag}={getattr(self, flag)} is not a duration. Write for example 6h or 90m.")

    def _check_pairs(self) -> None:
        for name in self.secrets:
            if not re.fullmatch(_VARIABLE, name):
                raise LaunchError(
                    "--secret takes the name of an environment variable, never its value; one of those given is not a valid name. "
                    "For example, write --secret=WANDB_API_KEY and set the variable here."
                )
        for text in self.env:
            if not re.fullmatch(_VARIABLE + "=.*", text):
                raise LaunchError(f"--env={short(text)}: write NAME=VALUE, for example --env=JAX_LOG_COMPILES=1.")
        for text in self.labels:
            if not re.fullmatch(_LABEL, text):
                raise LaunchError(
                    f"--label={short(text)}: write NAME=VALUE in lower-case letters, digits, _ and -, for example --label=team=nlp."
                )
        for text in self.data_disks:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}(:read-only|:read-write)?", text):
                raise LaunchError(f"--data_disk={short(text)}: write the disk's name, or NAME:read-only.")
        for text in self.xla_flags:
            if not re.fullmatch(r"xla_\w+=[^\s=]+", text):
                raise LaunchError(
                    f"--xla_flag={short(text)}: write NAME=VALUE, for example --xla_flag=xla_dump_to=/tmp/dump, without dashes and spaces."
                )

    @property
    def slice(self) -> Slice:
        """The slice that `accelerator`, `topology` and `chips` describe.

        Raises:
          LaunchError: there is no such slice.
        """
        return find_slice(self.accelerator, self.topology, self.chips)

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one per slice."""
        return [self.name] if self.slices == 1 else [f"{self.name}-{number}" for number in range(self.slices)]

    def variables(self, platform: str) -> dict[str, str]:
        """Return the environment variables of training, without secrets, on a `tpu` or `gpu`.

        libtpu reads options of XLA from a variable of its own, and XLA_FLAGS with an option that only libtpu knows stops JAX.

        Raises:
          LaunchError: an option of XLA is the other platform's, or a variable is set twice.
        """
        other = {"tpu": "xla_gpu_", "gpu": "xla_tpu_"}[platform]
        wrong = [flag for flag in self.xla_flags if flag.startswith(other)]
        if wrong:
            raise LaunchError(f"--xla_flag={wrong[0]} is not an option of XLA for a {platform.upper()}. Remove it.")
        pairs = [text.split("=", 1) for text in self.env]
        if self.xla_flags:
            name = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}[platform]
            pairs.append([name, " ".join(f"--{flag}" for flag in self.xla_flags)])
        names = [*(name for name, _ in pairs), *self.secrets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise LaunchError(f"{twice[0]} is set twice by --env, --secret or --xla_flag. Give it once.")
        return dict(pairs)

    def command(self, python: str = "python3") -> str:
        """Return the training command, quoted for a shell."""
        return shlex.join([python, "-m", "lm_research.train", *self.train])


_KINDS = {
    field.name: {"str": str, "int": int, "bool": bool}.get(str(field.type), list[str])
    for field in dataclasses.fields(Description)
}
COMMON = ("accelerator", "slices", "secrets", "env", "xla_flags")
TPU = (*COMMON, "topology", "project", "zone", "spot")


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the flags of some fields of a description; --run=FILE.json sets any field by name, and flags override the file."""
    parser.add_argument("--run", metavar="FILE.json", help="file with the description; flags override it")
    parser.add_argument("--name", help="name of the run and of every resource created for it")
    for field in dataclasses.fields(Description):
        if field.name not in names:
            continue
        kind, help, flag = _KINDS[field.name], field.metadata["help"], f"--{field.metadata['flag'] or field.name}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=help)
        elif kind in (str, int):
            shown = f"{help} ({field.default})" if field.default else help
            parser.add_argument(flag, type=kind, help=shown)
        else:
            metavar = help.rpartition(", ")[2].split(" or ")[0] if ", " in help else "NAME"
            parser.add_argument(flag, dest=field.name, action="append", metavar=metavar, help=f"{help} (repeatable)")


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
        check_fields(values, _KINDS, f"--run={flags.run}", error=LaunchError)
        values = {name: value for name, value in values.items() if value is not None}
    values |= {name: getattr(flags, name) for name in names - {"train"} if getattr(flags, name, None) is not None}
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
    argv: Sequence[str],
    parser: argparse.ArgumentParser,
    names: Sequence[str],
    make: Callable[[Description, argparse.Namespace], str],
) -> int:
    """Print the output of `make` for the run that a command line describes, and return the exit code.

    `parser` has the launcher's own flags; those of the fields `names` are added.
    """
    own, train = split_train(argv)
    add_flags(parser, names)
    flags = parser.parse_args(own)
    try:
        print(make(from_flags(flags, train), flags), end="")
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
