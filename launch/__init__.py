"""Launchers of runs: a simulated pod on this machine, TPU VMs, GKE and Slurm."""

import os
import signal
import sys

STOPPED = 75  # lm_research.errors.STOPPED_BY_SIGNAL, without importing the library


def _report_signal(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Report SIGTERM and Ctrl-C in one line instead of a traceback, after cleanup."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped by a signal before it finished; run the same command again to continue.", flush=True)
    os._exit(STOPPED)


if any(argument.startswith("launch.") for argument in sys.orig_argv[1:3]):  # python -m launch.NAME
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.excepthook = _report_signal
