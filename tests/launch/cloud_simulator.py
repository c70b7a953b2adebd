"""A Google Cloud in memory with a clock of its own: queued resources, TPU VMs and their workers, behind gcloud's command line.

Time passes only in `sleep` and a little in each call. Whatever can go wrong is drawn from a seeded generator, at the rates of
`Weather`: capacity comes and goes, slices are pre-empted wholly or in part or under repair, workers stop answering or
reboot, and the service answers with errors, sometimes after it has done what was asked. `faults` are errors on demand.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import subprocess
from typing import Any

from gcloud_reference import parse

from launch.chips import find_slice


class Hang(BaseException):
    """A command would wait for an answer to a question; not an Exception, so that no code handles it."""


@dataclasses.dataclass
class Weather:
    """Probabilities per minute of an event on the machines, and per call of an event of the service; at most `events` in all."""

    preempted: float = 0.0  # all slices
    partly_preempted: float = 0.0  # one slice, while the request stays active
    repaired: float = 0.0  # one slice does not answer for ten minutes
    broken: float = 0.0  # a worker never answers again
    rebooted: float = 0.0  # a worker loses its processes
    no_capacity: float = 0.0  # a request waits for an hour
    failed: float = 0.0  # a request fails
    incomplete: float = 0.0  # only some of the slices are made
    error: float = 0.0  # the service does not answer, after or before it has acted
    events: int = 10**9


@dataclasses.dataclass
class Node:
    state: str = "CREATING"
    back_at: float = 0.0  # when it is READY again
    broken: bool = False
    started: float | None = None  # when training began
    code: int | None = None
    files: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)  # name -> text, mode


@dataclasses.dataclass
class Request:
    flags: dict[str, str]
    state: str = "WAITING_FOR_RESOURCES"
    ready_at: float = 0.0
    nodes: dict[str, Node] = dataclasses.field(default_factory=dict)


class Cloud:
    """The cloud. `work` is how long training takes in seconds, and `codes` are exit codes after a minute instead of its end."""

    def __init__(
        self, seed: int = 0, weather: Weather | None = None, work: float = 600, codes: list[int] | None = None
    ):
        self.draw, self.weather, self.work = random.Random(seed), weather or Weather(), work
        self.now, self.saved, self.paid, self.events = 0.0, 0.0, 0.0, list[str]()
        self.codes, self.calls, self.faults = list(codes or []), list[list[str]](), list[list[Any]]()
        self.requests: dict[str, Request] = {}
        self.key = "none"  # of ssh: none, locked (with a passphrase), agent
        self.answers: dict[str, str] = {}  # command -> output, of the commands that only describe

    # The clock, in place of the module `time`.

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            step = min(60.0, end - self.now)
            self.now += step
            self._pass(step)

    def happens(self, name: str, minutes: float = 1.0) -> bool:
        if len(self.events) >= self.weather.events or self.draw.random() >= getattr(self.weather, name) * minutes:
            return False
        self.events.append(name)
        return True

    def _pass(self, seconds: float) -> None:
        for request in self.requests.values():
            if request.state in ("WAITING_FOR_RESOURCES", "PROVISIONING") and self.now >= request.ready_at:
                self._activate(request)
            if request.state == "SUSPENDING" and self.now >= request.ready_at:
                request.state = "SUSPENDED"
            self.paid += seconds * len(request.nodes)
            for node in request.nodes.values():
                if node.state == "REPAIRING" and self.now >= node.back_at:
                    node.state = "READY"
            self._train(list(request.nodes.values()), seconds)
            if request.state == "ACTIVE" and request.nodes:
                self._disturb(request, seconds / 60)

    def _activate(self, request: Request) -> None:
        if self.happens("failed"):
            request.state = "FAILED"
            return
        request.state = "ACTIVE"
        flags = request.flags
        count = int(flags.get("node-count", 1))
        names = [flags["node-id"]] if "node-id" in flags else [f"{flags['node-prefix']}-{i}" for i in range(count)]
        if count > 1 and self.happens("incomplete"):
            names.pop()
        request.nodes = {name: Node("READY") for name in names}

    def _disturb(self, request: Request, minutes: float) -> None:
        node = self.draw.choice(list(request.nodes.values()))
        if "spot" in request.flags and self.happens("preempted", minutes):
            request.state, request.ready_at = "SUSPENDING", self.now + 180
            for each in request.nodes.values():
                each.state, each.started = "PREEMPTED", None
            self.saved = max(0.0, self.saved - self.draw.random() * 300)  # since the last save
        elif "spot" in request.flags and self.happens("partly_preempted", minutes):
            node.state, node.started = "PREEMPTED", None
        elif self.happens("repaired", minutes):
            node.state, node.back_at, node.started = "REPAIRING", self.now + 600, None
        elif self.happens("broken", minutes):
            node.broken, node.started = True, None
        elif self.happens("rebooted", minutes):
            node.started, node.code = None, None

    def _train(self, nodes: list[Node], seconds: float) -> None:
        """Let the workers train together; those whose peer is lost save and stop."""
        running = [node for node in nodes if node.started is not None and node.code is None]
        if not running:
            return
        if len(running) < len(nodes):
            for node in running:
                node.code = 75 if self.now - (node.started or 0.0) > 300 else None
            return
        self.saved += seconds
        code = 0 if self.saved >= self.work else None
        if self.codes and self.now - min(node.started or 0.0 for node in nodes) >= 60:
            code = self.codes.pop(0)
        for node in nodes:
            node.code = code

    # The command line, in place of the module `subprocess`.

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command[1:])
        try:
            return subprocess.CompletedProcess(command, 0, self._answer(command[1:]), "")
        except SystemExit as error:
            return subprocess.CompletedProcess(command, 1, "", str(error.code))

    def call(self, command: list[str]) -> int:
        return self.run(command).returncode

    def _answer(self, arguments: list[str]) -> str:
        command, operands, flags = parse(arguments)
        self.sleep(1)
        for fault in self.faults:
            if fault[2] > 0 and any(fault[0] in argument for argument in arguments):
                fault[2] -= 1
                raise SystemExit(fault[1])
        lost = self.happens("error")
        if lost and self.draw.random() < 0.5:
            raise SystemExit("ERROR: (gcloud) UNAVAILABLE: The service is currently unavailable.")
        act = getattr(self, "_" + "_".join(command.replace("-", "_").split()[-2:]), None)
        answer = act(operands, flags) if act else self.answers.get(command, "")
        if lost:
            raise SystemExit("ERROR: (gcloud) DEADLINE_EXCEEDED: the answer was lost")
        return answer

    def _queued_resources_create(self, operands: list[str], flags: dict[str, str]) -> str:
        if operands[0] in self.requests:
            raise SystemExit(f"ERROR: ALREADY_EXISTS: Resource {operands[0]} already exists")
        if "accelerator-type" in flags:
            find_slice(flags["accelerator-type"])
        wait = 3600.0 if self.happens("no_capacity") else 60.0
        self.requests[operands[0]] = Request(flags, ready_at=self.now + wait)
        return ""

    def _queued_resources_delete(self, operands: list[str], flags: dict[str, str]) -> str:
        if "quiet" not in flags:
            raise Hang("Do you want to continue (Y/n)?")
        request = self.requests.get(operands[0])
        if request is None:
            raise SystemExit(f"ERROR: NOT_FOUND: {operands[0]}")
        if request.state == "SUSPENDING" or (request.nodes and "force" not in flags):
            raise SystemExit(f"ERROR: FAILED_PRECONDITION: it is {request.state} and has nodes")
        del self.requests[operands[0]]
        return ""

    def _queued_resources_list(self, _: list[str], flags: dict[str, str]) -> str:
        return "".join(f"{name} {request.state}\n" for name, request in self.requests.items()) + "runner ACTIVE\n"

    def _tpu_vm_list(self, _: list[str], flags: dict[str, str]) -> str:
        return "".join(f"{name} {node.state}\n" for name, node in self._nodes().items())

    def _nodes(self) -> dict[str, Node]:
        return {name: node for request in self.requests.values() for name, node in request.nodes.items()}

    def _reach(self, name: str, kind: str, flags: dict[str, str]) -> Node:
        """Connect to a TPU VM as gcloud does; raise what it would raise, or a Hang where it would ask."""
        node = self._nodes().get(name)
        if node is None:
            raise SystemExit(f"ERROR: NOT_FOUND: {name}")
        if node.state == "PREEMPTED":
            raise SystemExit('ERROR: This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
        if self.key == "none":
            if "quiet" not in flags:
                raise Hang("Enter passphrase (empty for no passphrase):")
            self.key = "agent"
        if self.key == "locked":
            if "-oBatchMode=yes" not in flags.get(f"{kind}-flag", ""):
                raise Hang("Enter passphrase for key:")
            raise SystemExit("Permission denied (publickey). ERROR: exited with return code [255].")
        if node.broken or node.state == "REPAIRING":
            raise SystemExit(
                "ssh: connect to host 10.0.0.2 port 22: Connection timed out. exited with return code [255]."
            )
        return node

    def _tpu_vm_scp(self, operands: list[str], flags: dict[str, str]) -> str:
        source, (name, _, target) = pathlib.Path(operands[0]), operands[1].partition(":")
        text = source.read_bytes().decode(errors="replace")
        self._reach(name, "scp", flags).files[pathlib.Path(target).name] = (text, source.stat().st_mode & 0o777)
        return ""

    def _tpu_vm_ssh(self, operands: list[str], flags: dict[str, str]) -> str:
        node, command = self._reach(operands[0], "ssh", flags), flags.get("command", "")
        if "setsid" in command and (node.started is None or node.code is not None):
            node.started, node.code = self.now, None
        elif "pkill" in command and node.started is not None:
            node.code = 75
        elif "cat code" in command:
            alive = "running" if node.started is not None else "75"
            return f"{alive if node.code is None else node.code}\n" * 4
        return ""
