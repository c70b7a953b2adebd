"""`python -m launch.doctor --name=bert --project=... --zone=... --accelerator=v5litepod-16 [-- TRAIN ARGS]`.

Checks what `launch.tpu_vm run` with the same flags needs, by commands that only list and describe: the account, the project,
its API, role and quota, the zone's types and runtime versions, the network, disks, service account and bucket, and the SSH
key. Prints one line per check, with the fix of what would fail, and returns 2 if anything would. A line with `?` could not
be decided.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from launch.description import Description, add_flags, from_flags, split_train
from launch.errors import LaunchError
from launch.gcloud import Gcloud, log
from launch.slices import request_flags, runtime
from launch.tpu_vm import FIELDS
from launch.training import check_training

KEY = "~/.ssh/google_compute_engine"
ROLES = {"roles/owner", "roles/editor", "roles/tpu.admin"}


class Unsure(Exception):
    """A check that could not be decided, with the reason."""


class Doctor:
    """The checks of one run; each returns what it found, or raises a LaunchError with the fix or Unsure."""

    def __init__(self, run: Description, gcloud: Gcloud) -> None:
        """Check the description itself."""
        if not run.project or not run.zone:
            raise LaunchError("--project and --zone are needed, for example --project=my-project --zone=us-west4-a.")
        self.run, self.gcloud, self.region = run, gcloud, run.zone.rpartition("-")[0]

    def _ask(self, *arguments: str, format: str = "", decides: bool = True) -> list[str]:
        """Return the words of gcloud's answer; if it refuses what `decides` nothing, raise Unsure."""
        shown = (f"--format={format}",) if format else ()
        try:
            return self.gcloud(*arguments, *shown, f"--project={self.run.project}", quiet=True).split()
        except LaunchError as error:
            if decides:
                raise
            raise Unsure(str(error)) from error

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield the name and the function of each check that the description needs."""
        run = self.run
        yield "request", lambda: " ".join(request_flags(run))
        if run.train:
            yield "training", self.training
        for name in ("account", "project", "api", "role", "type", "runtime", "quota"):
            yield name, getattr(self, name)
        disks = [text.partition(":")[0] for text in run.data_disks]
        for flag, names, command in (
            ("network", [run.network], ("compute", "networks", "describe")),
            ("subnetwork", [run.subnetwork], ("compute", "networks", "subnets", "describe", f"--region={self.region}")),
            ("service_account", [run.service_account], ("iam", "service-accounts", "describe")),
            ("data_disk", disks, ("compute", "disks", "describe", f"--zone={run.zone}")),
        ):
            for name in filter(None, names):
                yield f"{flag} {name}", functools.partial(self._exists, flag, name, *command)
        for bucket in sorted({word.partition("gs://")[2].partition("/")[0] for word in run.train if "gs://" in word}):
            yield f"bucket {bucket}", functools.partial(self.bucket, bucket)
        if run.slice.hosts > 1:
            yield "ssh key", self.key

    def _exists(self, flag: str, name: str, *command: str) -> str:
        try:
            self._ask(*command, name)
        except LaunchError as error:
            raise LaunchError(f"--{flag}={name} cannot be used: {error}") from error
        return name

    def training(self) -> str:
        check_training(self.run.train)
        missing = [name for name in self.run.secrets if name not in os.environ]
        if missing:
            raise LaunchError(f"--secret names variables that are not set here: {', '.join(missing)}. Export them.")
        return "its arguments are valid"

    def account(self) -> str:
        found = self._ask("auth", "list", "--filter=status:ACTIVE", format="value(account)")
        if not found:
            raise LaunchError("nobody is logged in. Run `gcloud auth login`.")
        return found[0]

    def project(self) -> str:
        return " ".join(self._ask("projects", "describe", self.run.project, format="value(projectId)"))

    def api(self) -> str:
        name = "tpu.googleapis.com"
        choice = ("--enabled", f"--filter=config.name={name}")
        if name not in self._ask("services", "list", *choice, format="value(config.name)", decides=False):
            raise LaunchError(f"{name} is off. Run `gcloud services enable {name} --project={self.run.project}`.")
        return f"{name} is on"

    def role(self) -> str:
        account = self.account()
        choice = ("--flatten=bindings[].members", f"--filter=bindings.members:{account}")
        policy = ("projects", "get-iam-policy", self.run.project)
        found = self._ask(*policy, *choice, format="value(bindings.role)", decides=False)
        if ROLES & set(found):
            return ", ".join(sorted(ROLES & set(found)))
        raise Unsure(f"{account} has none of {', '.join(sorted(ROLES))} of its own; it may have one through a group.")

    def type(self) -> str:
        wanted = self.run.slice.accelerator_type
        return self._listed(
            "accelerator-types", wanted, "Choose another zone or type: `gcloud compute tpus locations list`"
        )

    def runtime(self) -> str:
        return self._listed("versions", runtime(self.run), "Give one of the zone's by --version")

    def _listed(self, kind: str, wanted: str, fix: str) -> str:
        command = ("compute", "tpus", "tpu-vm", kind, "list", f"--zone={self.run.zone}")
        found = self._ask(*command, format="value(name.basename())")
        if wanted not in found:
            near = ", ".join(difflib.get_close_matches(wanted, found, 3, 0.4)) or "nothing like it"
            raise LaunchError(f"{self.run.zone} does not have {wanted}, but {near}. {fix}.")
        return wanted

    def quota(self) -> str:
        names, slice = self.run.slice.names, self.run.slice
        needed = slice.chips * names.cores * self.run.slices
        command = ("beta", "quotas", "info", "list", "--service=tpu.googleapis.com", f"--filter=quotaId~^{names.quota}")
        text = " ".join(self._ask(*command, format="json", decides=False))
        limits = {}
        for quota in json.loads(text or "[]"):
            name = quota.get("quotaId", "")
            if ("Preemptible" in name) != self.run.spot or "PerZone" not in name:
                continue
            for info in quota.get("dimensionsInfos", ()):
                zones = [*info.get("applicableLocations", ()), info.get("dimensions", {}).get("zone")]
                if self.run.zone in zones:
                    limits[name] = int(info.get("details", {}).get("value", 0))
        if not limits:
            raise Unsure(f"no quota {names.quota}... is listed for {self.run.zone}.")
        name, limit = max(limits.items(), key=lambda item: float("inf") if item[1] < 0 else item[1])
        if 0 <= limit < needed:
            raise LaunchError(
                f"{name} is {limit} in {self.run.zone}, but {needed} are needed. Ask for more under IAM & Admin > Quotas."
            )
        return f"{name} is {'unlimited' if limit < 0 else limit}, of which {needed} are needed"

    def bucket(self, name: str) -> str:
        try:
            (place, *_) = self._ask("storage", "buckets", "describe", f"gs://{name}", format="value(location)") or [""]
        except LaunchError as error:
            fix = f"gcloud storage buckets create gs://{name} --location={self.region} --project={self.run.project}"
            raise LaunchError(f"gs://{name} cannot be read: {error} If it does not exist, run `{fix}`.") from error
        if place.lower() not in (self.region, self.region.partition("-")[0]):
            raise Unsure(
                f"gs://{name} is in {place}, the machines in {self.region}: traffic between them is slower and costs."
            )
        return place

    def key(self) -> str:
        """Check that ssh needs no passphrase; copying to several workers needs the key in a running agent, too."""
        path = pathlib.Path(KEY).expanduser()
        if not path.exists():
            return "gcloud makes one at the first connection"
        fix = f"Run `eval $(ssh-agent) && ssh-add {KEY}`."
        code, loaded = _local("ssh-add", "-l")
        _, own = _local("ssh-keygen", "-lf", str(path))
        if len(own.split()) > 1 and own.split()[1] in loaded:
            return f"{KEY} is in the agent"
        if code != 2:
            raise LaunchError(f"an SSH agent runs without {KEY}. {fix}")
        if _local("ssh-keygen", "-y", "-P", "", "-f", str(path))[0]:
            raise LaunchError(f"{KEY} has a passphrase, and no SSH agent runs. {fix}")
        return f"{KEY} has no passphrase"


def _local(*command: str) -> tuple[int, str]:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 2, ""
    return done.returncode, done.stdout


def examine(doctor: Doctor) -> int:
    """Print a line per check, and return 2 if one fails."""
    failed = 0
    for name, check in doctor.checks():
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except Unsure as reason:
            print(f"?     {name}: {reason}", flush=True)
        except LaunchError as error:
            failed += 1
            print(f"FAIL  {name}: {error}", flush=True)
            if name == "request" or "gcloud is not installed" in str(error):
                break  # the others would only repeat it
    print(f"{failed} of the checks fail" if failed else "nothing speaks against this launch")
    return 2 if failed else 0


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    own, train = split_train(argv)
    parser = argparse.ArgumentParser(
        prog="launch.doctor", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_flags(parser, FIELDS)
    flags = parser.parse_args(own)
    try:
        return examine(Doctor(from_flags(flags, train), Gcloud(tries=3, wait=2.0)))
    except LaunchError as error:
        log(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
