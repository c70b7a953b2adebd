"""TPU VMs of one run: requested as queued resources, set up over ssh, and watched."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import tempfile
import time

from launch.chips import CHIPS
from launch.description import Description
from launch.errors import LaunchError
from launch.gcloud import Gcloud, log
from launch.training import STOPPED, check_training, extras, install

HOME = "lm_research_run"  # folder on each worker: wheel, environment, log, pid, exit code
GONE = ("FAILED", "SUSPENDED", "ABSENT")
COMING = ("CREATING", "STARTING", "RESTARTING", "REPAIRING")  # states of a TPU VM that becomes usable by itself
# gcloud generates a key without a question because of --quiet; ssh itself must not ask for the passphrase of an existing one.
NO_QUESTIONS = ("-oBatchMode=yes", "-oConnectTimeout=30")


class Slices:
    """The machines of one run."""

    def __init__(self, run: Description, gcloud: Gcloud, poll: float = 30.0, patience: float = 86400.0) -> None:
        """Set the seconds between two checks of the state (`poll`) and to wait for capacity (`patience`)."""
        if not run.project or not run.zone:
            raise LaunchError("--project and --zone are needed, for example --project=my-project --zone=us-west4-a.")
        self.run, self.gcloud, self.poll, self.patience = run, gcloud, poll, patience
        self.location = (f"--project={run.project}", f"--zone={run.zone}")
        self.request = request_flags(run)
        self.variables = run.variables("tpu")
        self.config, self.workdir = check_training(run.train) if run.train else ("", [])

    def _queued(self, command: str, *flags: str, track: tuple[str, ...] = (), quiet: bool = False) -> str:
        return self.gcloud(*track, "compute", "tpus", "queued-resources", command, *flags, *self.location, quiet=quiet)

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
        states = {words[1]: (words[2:] or ["UNKNOWN"])[0] for words in found if words[0] == "tpu-vm"}
        if set(states) != set(self.run.nodes):
            return "SUSPENDED"  # only some of the slices exist
        unready = [state for state in states.values() if state != "READY"]
        if not unready:
            return "ACTIVE"
        return "REPAIRING" if all(state in COMING for state in unready) else "SUSPENDED"

    def create(self) -> None:
        """Request the slices and wait for them; failed or pre-empted ones are deleted first."""
        if self.gcloud.dry_run:
            self._request()
            return
        run, failures, deadline = self.run, 0, time.monotonic() + self.patience
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
        track = ("alpha",) if self.run.flex_start else ()  # flex-start is not in the general release of the command
        try:
            self._queued("create", self.run.name, *self.request, track=track)
        except LaunchError as error:
            if "ALREADY_EXISTS" not in str(error):  # an earlier attempt succeeded, but its response was lost
                raise

    def delete(self) -> None:
        """Delete the queued resource with its machines; it cannot be deleted while it changes its state, which takes minutes."""
        for number in range(1, self.gcloud.tries + 1):
            try:
                self._queued("delete", self.run.name, "--force")
            except LaunchError as error:
                if "NOT_FOUND" in str(error):  # likewise
                    return
                if "FAILED_PRECONDITION" not in str(error) or number == self.gcloud.tries:
                    raise
                log(f"{self.run.name} cannot be deleted yet; the next attempt is in {self.poll:g} s")
                time.sleep(self.poll)
            else:
                return

    def run_on_all_workers(self, command: str, quiet: bool = False) -> str:
        """Run a shell command on every worker of every slice, and return their output."""
        return "".join(self._ssh(node, "all", command, quiet) for node in self.run.nodes)

    def ssh_flags(self, kind: str = "") -> list[str]:
        """Return the flags that accept the new machines' keys and choose the address, and keep `ssh` or `scp` from asking."""
        address = ["--internal-ip"] if self.run.internal_ips else []
        unasked = [f"--{kind}-flag={flag}" for flag in NO_QUESTIONS] if kind else []
        return ["--strict-host-key-checking=no", *unasked, *address]

    def _ssh(self, node: str, worker: str, command: str, quiet: bool = False) -> str:
        flags = (f"--worker={worker}", f"--command={command}", *self.ssh_flags("ssh"), *self.location)
        return self.gcloud("compute", "tpus", "tpu-vm", "ssh", node, *flags, quiet=quiet)

    def _send(self, path: pathlib.Path, name: str) -> None:
        for node in self.run.nodes:
            flags = ("--worker=all", *self.ssh_flags("scp"), *self.location)
            self.gcloud("compute", "tpus", "tpu-vm", "scp", str(path), f"{node}:{HOME}/{name}", *flags)

    def set_up(self, wheel: pathlib.Path, digest: str) -> None:
        """Install the wheel, checked against its digest, and the values of the secrets on every worker."""
        self.run_on_all_workers(f"mkdir -p -m 700 {HOME}")
        self._send(wheel, wheel.name)
        config = wheel.with_name("config.json")
        config.write_text(self.config)
        self._send(config, config.name)
        check = f"echo '{digest}  {wheel.name}' | sha256sum --check --quiet"
        package = f"./{wheel.name}[{extras(self.run.train)}]"
        self.run_on_all_workers(f"cd {HOME} && {check} && {install(package, 'env')}")
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
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in self.variables.items())
        train = ("--config=config.json", *self.workdir)
        command = shlex.join(["env/bin/python", "-m", "lm_research.train", *train])
        body = f"{exports}if [ -e secrets.sh ]; then . ./secrets.sh; fi; {command}; echo $? > code"
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


def request_flags(run: Description) -> list[str]:
    """Return the flags of `gcloud compute tpus queued-resources create`.

    Raises:
      LaunchError: the Cloud TPU API does not serve such machines.
    """
    slice, nodes = run.slice, [f"--node-id={run.name}"]
    if run.slices > 1:
        nodes = [f"--node-count={run.slices}", f"--node-prefix={run.name}"]
    if not slice.names.runtime:
        raise LaunchError(
            f"--accelerator={run.accelerator}: the Cloud TPU API does not serve {slice.chip}. Use `python -m launch.gke` or "
            f"`python -m launch.compute_engine` with --accelerator={slice}."
        )
    kind = [f"--accelerator-type={slice.accelerator_type}"]
    if not slice.is_default:
        kind = [f"--type={slice.names.prefix}", f"--topology={slice.topology}"]
    options = {
        "network": run.network,
        "subnetwork": run.subnetwork,
        "service-account": run.service_account,
        "labels": ",".join(run.labels),
    }
    flags = [*nodes, *kind, f"--runtime-version={runtime(run)}"]
    flags += [f"--{name}={value}" for name, value in options.items() if value]
    flags += [f"--{name}" for name in ("spot", "reserved") if getattr(run, name)]
    flags += ["--internal-ips"] if run.internal_ips else []
    if run.flex_start:
        flags += ["--provisioning-model=flex-start", f"--max-run-duration={run.flex_start}"]
    if run.valid_until:  # gcloud sends an interval only if it has both ends
        flags += ["--valid-after-duration=1s", f"--valid-until-duration={run.valid_until}"]
    return flags + [f"--data-disk={_disk(run, disk)}" for disk in run.data_disks]


def runtime(run: Description) -> str:
    """Return the runtime version: the one given, or the chip's.

    Raises:
      LaunchError: the version given is another chip's, or of a kind of TPU that no longer exists.
    """
    names, version = run.slice.names, run.version
    others = [chip for chip, other in CHIPS.items() if version and other.runtime == version != names.runtime]
    if others:
        raise LaunchError(
            f"--version={version} is the runtime of {others[0]}, but --accelerator={run.accelerator} needs {names.runtime}. Leave out --version."
        )
    if re.fullmatch(r"[0-9.]+|nightly.*|pytorch-.*", version):
        raise LaunchError(
            f"--version={version} belongs to TPU nodes, which no longer exist: machines without access for users. Leave out "
            f"--version; {names.runtime} is used."
        )
    return version or names.runtime


def _disk(run: Description, disk: str) -> str:
    name, _, mode = disk.partition(":")
    if mode != "read-only" and run.slice.hosts * run.slices > 1:
        raise LaunchError(
            f"--data_disk={disk}: {run.slices} x {run.slice} has {run.slice.hosts * run.slices} machines, and only one could write "
            f"to the disk. Write {name}:read-only, or use a bucket."
        )
    return f"source=projects/{run.project}/zones/{run.zone}/disks/{name},mode={mode or 'read-write'}"
