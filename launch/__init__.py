"""How a run gets onto machines: a simulated pod here, TPU VMs, GKE, Slurm."""

import os
import signal
import sys

STOPPED = 75  # as lm_research.errors has it; nothing here needs the library


def _told(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """SIGTERM and Ctrl-C in words, once what must be put away is."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped by a signal before it finished; run the same command again to continue.", flush=True)
    os._exit(STOPPED)


if any(argument.startswith("launch.") for argument in sys.orig_argv[1:3]):  # python -m launch.NAME
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.excepthook = _told
