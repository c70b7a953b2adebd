"""The training that is launched: its arguments, checked before anything costs money, and its code as a wheel."""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from launch.errors import LaunchError

ROOT = pathlib.Path(__file__).resolve().parents[1]
STOPPED = 75  # exit code of training: saved, and the same command continues
PYTHON = "3.12"  # uv installs it where the machine's is older than the package allows


def check_training(train: Sequence[str], *, shared: bool = True) -> tuple[str, list[str]]:
    """Check the arguments of training; return the config as JSON, and the flag of the working directory.

    Args:
      train: arguments of `python -m lm_research.train`.
      shared: whether a relative working directory would be another one on each machine.

    Raises:
      LaunchError: training would refuse these arguments.
    """
    from lm_research import cli, config
    from lm_research.errors import UserError

    if not train:
        raise LaunchError(
            "Nothing to run: write the arguments of training after --, for example -- --config=configs/bert_base.py --workdir=gs://BUCKET/bert."
        )
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--workdir")
    place, rest = parser.parse_known_args(list(train))
    if not place.workdir:
        raise LaunchError(
            "--workdir is missing after --. Give a directory that all machines can access, for example --workdir=gs://BUCKET/NAME."
        )
    if "://" in place.workdir and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+/.+", place.workdir):
        raise LaunchError(
            f"--workdir={place.workdir} is an address that a run of several processes cannot write to. Give gs://BUCKET/RUN, or mount it on every machine (s3fs, NFS) "
            "and give the absolute path of the mounted directory."
        )
    if shared and not place.workdir.startswith(("/", "gs://")):
        raise LaunchError(
            f"--workdir={place.workdir} would be another directory on each machine, and is lost with it. Give gs://BUCKET/RUN, or the absolute "
            "path of storage that all machines mount."
        )
    try:
        resolved, _ = cli.parse([*rest, "--workdir=."])
    except UserError as error:
        raise LaunchError(str(error)) from error
    return config.dumps(resolved), [f"--workdir={place.workdir}"]


def extras(train: Sequence[str]) -> str:
    """Return the extras of the package that training on TPUs needs: tpu, and gcs or s3 for a bucket among its arguments."""
    text = " ".join(train)
    return ",".join(["tpu", *(name for scheme, name in (("gs://", "gcs"), ("s3://", "s3")) if scheme in text)])


def install(package: str, environment: str) -> str:
    """Return the shell command that installs a package into a new virtual environment."""
    return (
        "python3 -m pip install --quiet --user uv && "
        f"python3 -m uv venv --quiet --allow-existing --python {PYTHON} {environment} && "
        f'python3 -m uv pip install --quiet --python {environment}/bin/python "{package}"'
    )


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
