"""The lock of a run directory in a bucket, where no file can be locked: a lease that its holder renews.

The leases are the objects RUN/.lock/1.json, 2.json, ... Each number is created only if it does not exist, so by one process, and the
largest one counts. Its holder rewrites it six times in SECONDS. It may be succeeded by the next number if it was released, if its process
has ended (which only a process of the same machine sees), or if it stays the same for SECONDS while another process watches, so that no
clocks are compared. A holder that finds a larger number, because it was suspended or cut off for too long, ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from lm_research.common import buckets
from lm_research.errors import CheckpointError, UserError
from lm_research.parallel import processes

SECONDS = ("LM_RESEARCH_LEASE_SECONDS", 90.0)
FOLDER = ".lock"


class Lease:
    """The right to use a run directory in a bucket, until `close` or the end of the process."""

    def __init__(self, workdir: pathlib.Path, flag: str) -> None:
        """Take the lease of the directory that `flag` named, after waiting for the end of another one if its process may have ended.

        Raises:
          CheckpointError: another process holds it.
          Exception: of the bucket's client.
        """
        self._what, self._folder, self._me = f"{flag}={workdir}", workdir / FOLDER, _this_process()
        self._seconds = processes.timeout_seconds(SECONDS)
        self._ended = threading.Event()
        while True:
            newest = self._newest()
            if newest and not self._is_over(newest):
                holder = _read(self._path(newest))
                by = f" (process {holder['pid']} on {holder['host']})" if holder else ""
                raise CheckpointError(
                    f"{self._what} is in use by another running process{by}. Wait for it, stop it, or choose another {flag}."
                )
            self.number = newest + 1
            if buckets.create(self._path(self.number), self._content()):
                break
        for number in range(max(1, newest - 9), newest + 1):
            with contextlib.suppress(Exception):
                self._path(number).unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number}.json"

    def _newest(self) -> int:
        system, name = buckets.filesystem(self._folder)
        try:
            names = [pathlib.PurePath(entry).stem for entry in system.ls(name, detail=False)]
        except FileNotFoundError:
            return 0
        return max((int(one) for one in names if one.isdecimal()), default=0)

    def _is_over(self, number: int) -> bool:
        """Whether a lease may be succeeded; takes up to its time to see."""
        first = _read(self._path(number))
        until = time.monotonic() + self._seconds
        while True:
            holder = _read(self._path(number))
            if holder is None or holder.get("released"):
                return True
            if all(holder.get(key) == self._me[key] for key in ("boot", "namespace")):
                return start_time(holder["pid"]) != holder["started"]
            if holder != first:
                return False
            if time.monotonic() > until:
                return True
            time.sleep(self._seconds / 12)

    def _content(self, **more: Any) -> bytes:
        return json.dumps({**self._me, "time": time.time(), **more}).encode()

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 6):
            with contextlib.suppress(
                Exception
            ):  # of the bucket's client: it may answer again before anybody else takes the lease
                if self._newest() > self.number:
                    return self._lose()
                buckets.write(self._path(self.number), self._content())

    def _lose(self) -> None:
        """End the process, whatever it does, because another one uses the directory."""
        error: UserError = CheckpointError(
            f"{self._what} was taken over by another process, because this one could not renew its lease for {self._seconds:g} s. It ends; "
            "the other one continues the run."
        )
        processes.end_all(error)
        os.write(2, f"error: {error}\n".encode())
        os._exit(error.exit_code)

    def close(self) -> None:
        """Give the lease back."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # then it ends by itself
            if self._newest() == self.number:
                buckets.write(self._path(self.number), self._content(released=True))

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Read a lease; None if it does not exist."""
    try:
        holder: dict[str, Any] = json.loads(buckets.read(path))
        return holder
    except FileNotFoundError:
        return None


def _this_process() -> dict[str, Any]:
    """Describe this process: what its machine needs to see whether it has ended, and what people need to find it."""
    return {
        "owner": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "boot": _known(lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()),
        "namespace": _known(lambda: os.readlink("/proc/self/ns/pid")),
    }


def _known(read: Callable[[], str]) -> str:
    """Return what identifies a part of this machine, or a text equal to no other where the system does not tell."""
    with contextlib.suppress(OSError):
        return read()
    return uuid.uuid4().hex


def start_time(pid: int) -> str:
    """Return when a process of this machine started, in the kernel's ticks; "" if it does not exist or has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
