"""`python -m launch.tpu_vm {create,run,logs,stop,delete,ssh} --name=... --project=... --zone=... [-- TRAIN ARGS]`.

Run on Cloud TPU VMs through queued resources and the gcloud command line. `run` does everything: it creates the slices if
they do not exist, sends the code as a wheel, starts training on every worker, watches it, recreates pre-empted spot slices,
and resumes the run, whose working directory must be on storage that all workers can access. --dry_run prints the commands.
The last lines always list the machines that still exist and cost money.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence

from launch.description import Description, LaunchError, add_flags, build_wheel, from_flags, split_train
from launch.gcloud import Gcloud, log
from lm_research.common.flags import bounded

HOME = "lm_research_run"  # folder on each worker: wheel, environment, log, pid, exit code
PYTHON = "3.12"
FINAL = (0, 2, 3)  # exit codes of training that a restart would only repeat: done, a user error, a non-finite loss
STOPPED = 75  # exit code of training: saved, and the same command continues
GONE = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING", "ABSENT")


class Slices:
    """The machines of one run."""

    def __init__(self, run: Description, gcloud: Gcloud, poll: float = 30.0, patience: float = 86400.0) -> None:
        """Set the seconds between two checks of the state (`poll`) and to wait for capacity (`patience`)."""
        if not run.project or not run.zone:
            raise LaunchError("--project and --zone are needed, for example --project=mine --zone=us-west4-a.")
        self.run, self.gcloud, self.poll, self.patience = run, gcloud, poll, patience
        self.location = (f"--project={run.project}", f"--zone={run.zone}")

    def _queued(self, command: str, *flags: str, quiet: bool = False) -> str:
        return self.gcloud("compute", "tpus", "queued-resources", command, *flags, *self.location, quiet=quiet)

    def existing(self) -> list[str]:
        """List the existing queued resources and TPU VMs of this name as "KIND NAME STATE"."""
        found = []
        for kind, state in (("queued-resources", "state.state"), ("tpu-vm", "state")):
            flags = (f"--format=value(name.basename(),{state})", *self.location)
            lines = self.gcloud("compute", "tpus", kind, "list", *flags, quiet=True).splitlines()
            for words in filter(None, map(str.split, lines)):
                if words[0] in {self.run.name, *self.run.nodes}:
                    found.append(" ".join([kind, *words]))
        return found

    def state(self) -> str:
        """Return the state of the queued resource, or of its worst TPU VM once it is active; ABSENT if there is none."""
        found = [line.split() for line in self.existing()]
        queued = [(words[2:] or ["UNKNOWN"])[0] for words in found if words[0] == "queued-resources"]
        if not queued or queued[0] != "ACTIVE":
            return queued[0] if queued else "ABSENT"
        ready = [words[1] for words in found if words[0] == "tpu-vm" and words[2:] == ["READY"]]
        return "ACTIVE" if set(ready) == set(self.run.nodes) else "SUSPENDED"

    def create(self) -> None:
        """Request the slices and wait for them; failed or pre-empted ones are deleted first."""
        run = self.run
        failures, deadline = 0, time.monotonic() + self.patience
        if self.gcloud.dry_run:
            self._request()
            return
        while (state := self.state()) != "ACTIVE":
            if state == "FAILED":
                failures += 1
                if failures == self.gcloud.tries:
                    raise LaunchError(
                        f"{run.name}: allocation of machines failed {failures} times. Try another zone, or try again later."
                    )
            if time.monotonic() > deadline:
                raise LaunchError(f"{run.name} is {state} after {self.patience:g} s. Try another zone, or wait longer.")
            log(f"{run.name}: {state}")
            if state in GONE:
                if state != "ABSENT":
                    self.delete()
                    time.sleep(self.gcloud.wait * 2 ** max(failures - 1, 0))
                self._request()
            else:
                time.sleep(self.poll)

    def _request(self) -> None:
        run, nodes = self.run, [f"--node-id={self.run.name}"]
        if run.slices > 1:
            nodes = [f"--node-count={run.slices}", f"--node-prefix={run.name}"]
        flags = [f"--accelerator-type={run.accelerator}", f"--runtime-version={run.version}"]
        try:
            self._queued("create", run.name, *nodes, *flags, *(["--spot"] if run.spot else []))
        except LaunchError as error:
            if "ALREADY_EXISTS" not in str(error):  # an earlier attempt succeeded, but its response was lost
                raise

    def delete(self) -> None:
        """Delete the queued resource with its machines."""
        self._queued("delete", self.run.name, "--force", "--quiet")

    def run_on_all_workers(self, command: str, quiet: bool = False) -> str:
        """Run a shell command on every worker of every slice, and return their output."""
        parts = [self._ssh(node, "all", command, quiet) for node in self.run.nodes]
        return "".join(parts)

    def _ssh(self, node: str, worker: str, command: str, quiet: bool = False) -> str:
        flags = (f"--worker={worker}", f"--command={command}", *self.location)
        return self.gcloud("compute", "tpus", "tpu-vm", "ssh", node, *flags, quiet=quiet)

    def _send(self, path: pathlib.Path, name: str) -> None:
        for node in self.run.nodes:
            target = f"{node}:{HOME}/{name}"
            self.gcloud("compute", "tpus", "tpu-vm", "scp", str(path), target, "--worker=all", *self.location)

    def set_up(self, wheel: pathlib.Path, digest: str) -> None:
        """Install the wheel, checked against its digest, and the values of the secrets on every worker."""
        self.run_on_all_workers(f"mkdir -p -m 700 {HOME}")
        self._send(wheel, wheel.name)
        config = wheel.with_name("config.json")
        config.write_text(resolve(self.run.train)[0])
        self._send(config, config.name)
        check = f"echo '{digest}  {wheel.name}' | sha256sum --check --quiet"
        # The Python of a TPU VM is older than the package allows, so uv installs a newer one.
        install = (
            f"python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python {PYTHON} env && "
            f"python3 -m uv pip install --quiet --python env/bin/python './{wheel.name}[tpu]'"
        )
        self.run_on_all_workers(f"cd {HOME} && {check} && {install}")
        if not self.run.secrets:
            return
        with tempfile.TemporaryDirectory() as folder:  # readable only by this user
            path = pathlib.Path(folder) / "secrets.sh"
            lines = [f"export {name}={shlex.quote(os.environ.get(name, ''))}\n" for name in self.run.secrets]
            path.touch(0o600)
            path.write_text("".join(lines))
            self._send(path, path.name)
        self.run_on_all_workers(f"chmod 600 {HOME}/secrets.sh")

    def start(self) -> None:
        """Start training on every worker in the background, unless it is already running."""
        running = "test -e pid && kill -0 $(cat pid) 2>/dev/null"
        train = ("--config=config.json", *resolve(self.run.train)[1])
        command = shlex.join(["env/bin/python", "-m", "lm_research.train", *train])
        body = f"if [ -e secrets.sh ]; then . ./secrets.sh; fi; {command}; echo $? > code"
        begin = f"rm -f code; setsid nohup bash -c {shlex.quote(body)} >> log.txt 2>&1 < /dev/null & echo $! > pid"
        self.run_on_all_workers(f"cd {HOME} && {{ {running} || {{ {begin}; }}; }}")

    def exit_code(self) -> int | None:
        """Return the highest exit code of the workers of the first slice; None while any of them runs.

        A worker with neither a running process nor an exit code was rebooted, which counts as stopped.
        """
        check = f"cd {HOME} && cat code 2>/dev/null || {{ kill -0 $(cat pid) 2>/dev/null && echo running; }} || echo {STOPPED}"
        words = self._ssh(self.run.nodes[0], "all", check, quiet=True).split()
        if not words or "running" in words:
            return None
        codes = [int(word) for word in words if word.isdigit()]
        return STOPPED if STOPPED in codes else max(codes, default=STOPPED)

    def stop(self) -> None:
        """Make every worker save and end."""
        self.run_on_all_workers(f"cd {HOME} && test -e pid && pkill -TERM --session $(cat pid) python || true")

    def report(self) -> None:
        """Report which machines still exist, and how to delete them."""
        if self.gcloud.dry_run:
            return
        try:
            found = self.existing()
        except LaunchError as error:
            log(f"WARNING: cannot check whether machines of {self.run.name} still exist ({error}). Check the console.")
            return
        if not found:
            log(f"no machines of {self.run.name} exist anymore")
            return
        log("these still exist and cost money: " + "; ".join(found))
        log(
            f"delete with: python -m launch.tpu_vm delete --name={self.run.name} --slices={self.run.slices} {' '.join(self.location)}"
        )


def resolve(train: Sequence[str]) -> tuple[str, list[str]]:
    """Check the run's config; return it as JSON, and the rest of the training flags: the working directory.

    Raises:
      LaunchError: training would refuse these arguments.
    """
    from lm_research import cli, config
    from lm_research.errors import UserError

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--workdir")
    place, rest = parser.parse_known_args(list(train))
    if not place.workdir:
        raise LaunchError("--workdir is missing after --. Give a directory that all workers can access.")
    try:
        resolved, _ = cli.parse([*rest, "--workdir=."])
    except UserError as error:
        raise LaunchError(str(error)) from error
    return config.dumps(resolved), [f"--workdir={place.workdir}"]


def run_to_completion(slices: Slices, restarts: int) -> int:
    """Create and set up the slices, run training and return its exit code; restart it when it is pre-empted or stops with 75.

    Raises:
      LaunchError: too many restarts, or a permanent error.
    """
    missing = [name for name in slices.run.secrets if name not in os.environ]
    if missing:
        raise LaunchError(f"--secret names variables that are not set here: {', '.join(missing)}. Export them first.")
    resolve(slices.run.train)  # reports errors before anything costs money
    with tempfile.TemporaryDirectory() as folder:
        wheel, digest = build_wheel(pathlib.Path(folder))
        log(f"code: {wheel.name}, sha256 {digest}")
        for number in range(restarts + 1):
            slices.create()
            try:
                slices.set_up(wheel, digest)
                slices.start()
                code = 0 if slices.gcloud.dry_run else _watch(slices)
            except LaunchError:
                if slices.state() == "ACTIVE":
                    raise  # the machines still exist, so the cause is not pre-emption
                code = None
            if code not in (None, STOPPED):
                return code
            why = "was pre-empted" if code is None else "stopped after saving"
            log(f"{slices.run.name} {why}; restart {number + 1} of {restarts}")
    raise LaunchError(
        f"{slices.run.name} has not finished after {restarts} restarts, the limit (--restarts). Run the same command again to continue."
    )


def _watch(slices: Slices) -> int | None:
    """Wait for training; return its exit code, or None if a slice was pre-empted."""
    while slices.state() == "ACTIVE":
        code = slices.exit_code()
        if code in (*FINAL, STOPPED):
            return code
        time.sleep(slices.poll)
        if code is not None and slices.state() == "ACTIVE":
            return code  # a real failure: the machines are not being pre-empted
    return None


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line into flags and the arguments of training."""
    own, train = split_train(argv)
    parser = argparse.ArgumentParser(
        prog="launch.tpu_vm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("create", "run", "logs", "stop", "delete", "ssh"))
    add_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the exact commands and run none")
    parser.add_argument(
        "--tries", type=bounded(int, 1, 1000), default=6, help="attempts for a command with a transient error"
    )
    parser.add_argument(
        "--wait",
        type=bounded(float, 0.0, 1e15),
        default=5.0,
        help="seconds before the second attempt; doubles each time",
    )
    parser.add_argument(
        "--poll", type=bounded(float, 0.0, 1e15), default=30.0, help="seconds between two checks of the machines"
    )
    parser.add_argument(
        "--patience", type=bounded(float, 0.0, 1e15), default=86400.0, help="seconds to wait for capacity"
    )
    parser.add_argument(
        "--restarts",
        type=bounded(int, 0, 10**6),
        default=100,
        help="limit on restarts of a run that was stopped or pre-empted",
    )
    parser.add_argument(
        "--delete_after", action="store_true", help="delete the machines when `run` ends, for whatever reason"
    )
    parser.add_argument("--worker", default="0", help="number of the worker, for ssh and logs")
    return parser.parse_args(own), train


def act(flags: argparse.Namespace, slices: Slices) -> int:
    """Run the command `flags.command` and return the exit code."""
    run, gcloud = slices.run, slices.gcloud
    if flags.command == "create":
        slices.create()
    elif flags.command == "stop":
        slices.stop()
    elif flags.command == "delete":
        slices.delete()
    elif flags.command in ("ssh", "logs"):
        follow = [f"--command=tail -n 100 -F {HOME}/log.txt"] if flags.command == "logs" else []
        place = [run.nodes[0], f"--worker={flags.worker}", *follow, *slices.location]
        return gcloud.run_through(["compute", "tpus", "tpu-vm", "ssh", *place])
    else:
        if not run.train:
            raise LaunchError("Nothing to run: write the arguments of training after --.")
        try:
            return run_to_completion(slices, flags.restarts)
        finally:
            if flags.delete_after:
                slices.delete()
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    flags, train = parse(argv)
    slices = None
    try:
        slices = Slices(
            from_flags(flags, train), Gcloud(flags.dry_run, flags.tries, flags.wait), flags.poll, flags.patience
        )
        return act(flags, slices)
    except LaunchError as error:
        log(f"error: {error}")
        return 2
    finally:
        if slices and flags.command not in ("ssh", "logs"):
            slices.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
