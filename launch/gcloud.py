"""The gcloud command line: commands are printed, retried with back-off, never wait for an answer, and never contain a secret."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from launch.errors import LaunchError, MachineError

# Parts of gcloud's messages for errors that cannot pass, with what to do; they are looked for first.
PERMANENT = {
    "PerProjectPerZone": "The quota is used up or was never granted. Ask for more under IAM & Admin > Quotas, or use another zone.",
    "Quota limit": "Ask for more under IAM & Admin > Quotas, or use another zone.",
    "SERVICE_DISABLED": "Enable it with `gcloud services enable tpu.googleapis.com --project=PROJECT`.",
    "has not been used in project": "Enable it with `gcloud services enable tpu.googleapis.com --project=PROJECT`.",
    "LOCATION_POLICY_VIOLATED": "The zone does not exist or is not open to the project: `gcloud compute tpus locations list`.",
    "PERMISSION_DENIED": "The account needs the role roles/tpu.admin on the project, and roles/iam.serviceAccountUser on the service account.",
    "not found in zone": "The zone does not have this type. `python -m launch.doctor` says what it has.",
    "not present in the SSH agent": "Run `eval $(ssh-agent) && ssh-add ~/.ssh/google_compute_engine`, and the command again.",
    "Permission denied (publickey": "The SSH key is locked or not accepted. Run `ssh-add ~/.ssh/google_compute_engine`, and the command again.",
    "do not currently have an active account": "Run `gcloud auth login`.",
    "Reauthentication": "Run `gcloud auth login`.",
}
# Parts of its messages for errors that pass.
TRANSIENT = (
    "RESOURCE_EXHAUSTED",
    "no more capacity",
    "not enough capacity",
    "UNAVAILABLE",
    "ABORTED",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Connection closed",
    "DEADLINE_EXCEEDED",
    "Internal error",
    "INTERNAL",
    "exited with return code [255]",
    "exit status 255",
    "rateLimitExceeded",
    "cannot be currently connected to",
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
      limit: seconds after which a command is killed, which counts as transient.
    """

    dry_run: bool = False
    tries: int = 6
    wait: float = 5.0
    limit: float = 1800.0

    def __call__(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command and return its standard output; with `quiet`, do not print the command (for polling).

        Raises:
          MachineError: it failed `tries` times with a transient error.
          LaunchError: it failed permanently; the message contains the end of gcloud's.
        """
        command = ["gcloud", *arguments, "--quiet"]
        if self.dry_run or not quiet:
            print(shlex.join(command), flush=True)
        if self.dry_run:
            return ""
        for number in range(1, self.tries + 1):
            code, output, errors = self._run(command)
            if code == 0:
                return output
            message = " ".join(errors.split())[-400:]
            fix = next((fix for part, fix in PERMANENT.items() if part in errors), None)
            if fix or not any(part in errors for part in TRANSIENT):
                raise LaunchError(f"gcloud failed ({code}): {message} {fix or ''}".rstrip())
            if number == self.tries:
                raise MachineError(f"gcloud failed {number} times; the last error was: {message}")
            pause = min(self.wait * 2 ** (number - 1), 300.0)
            log(f"attempt {number} of {self.tries} failed ({message}); the next is in {pause:g} s")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _run(self, command: Sequence[str]) -> tuple[int, str, str]:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.limit)
        except FileNotFoundError as error:
            raise LaunchError("gcloud is not installed. See https://cloud.google.com/sdk/docs/install.") from error
        except subprocess.TimeoutExpired:
            return 124, "", f"DEADLINE_EXCEEDED: no answer within {self.limit:g} s"
        return done.returncode, done.stdout, done.stderr

    def run_through(self, arguments: Sequence[str]) -> int:
        """Run a command on this terminal (ssh, logs) and return its exit code."""
        command = ["gcloud", *arguments, "--quiet"]
        print(shlex.join(command), flush=True)
        return 0 if self.dry_run else subprocess.call(command)
