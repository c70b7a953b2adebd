"""The error of all launchers."""

from lm_research.errors import UserError


class LaunchError(UserError):
    """Error that stops a launch, with a message of one paragraph: what, where, the fix."""


class MachineError(LaunchError):
    """Error of the machines or the service that persists after retries; new machines may not have it."""
