"""The gcloud command line: commands are printed, retried with back-off, and never contain a secret."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from launch.description import LaunchError

# Parts of gcloud's messages for transient errors.
TRANSIENT = (
    "RESOURCE_EXHAUSTED",
    "no more capacity",
    "not enough capacity",
    "UNAVAILABLE",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "DEADLINE_EXCEEDED",
    "Internal error",
    "exited with return code [255]",
    "rateLimitExceeded",
)


def log(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Gcloud:
    """Runner of gcloud commands.

    Attributes:
      dry_run: print the commands without running them; each counts as successful, without output.
      tries: number of attempts for a command that fails with one of TRANSIENT.
      wait: seconds before the second attempt; each further wait is twice as long, up to five minutes.
    """

    dry_run: bool = False
    tries: int = 6
    wait: float = 5.0

    def __call__(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command and return its standard output; with `quiet`, do not print the command (for polling).

        Raises:
          LaunchError: it failed permanently; the message contains the end of gcloud's.
        """
        command = ["gcloud", *arguments]
        if self.dry_run or not quiet:
            print(shlex.join(command), flush=True)
        if self.dry_run:
            return ""
        for number in range(1, self.tries + 1):
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError as error:
                raise LaunchError("gcloud is not installed. See https://cloud.google.com/sdk/docs/install.") from error
            if done.returncode == 0:
                return done.stdout
            message = " ".join(done.stderr.split())[-400:]
            if not any(part in done.stderr for part in TRANSIENT):
                raise LaunchError(f"gcloud failed ({done.returncode}): {message}")
            if number == self.tries:
                raise LaunchError(f"gcloud failed {number} times; the last error was: {message}")
            pause = min(self.wait * 2 ** (number - 1), 300.0)
            log(f"attempt {number} of {self.tries} failed ({message}); the next is in {pause:g} s")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def run_through(self, arguments: Sequence[str]) -> int:
        """Run a command on this terminal (ssh, logs) and return its exit code."""
        command = ["gcloud", *arguments]
        print(shlex.join(command), flush=True)
        return 0 if self.dry_run else subprocess.call(command)
