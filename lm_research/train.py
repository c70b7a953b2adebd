"""`python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Train a model. The same command starts a run, resumes one that was stopped, and reports one that is finished. run/fit.py implements
the run, run/loop.py its loop.
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may arrive while the libraries below are imported
    from lm_research.common import interrupts

    interrupts.watch("before the first step")

import contextlib
import pathlib

from lm_research import cli
from lm_research.common.disk import reporting_disk_errors
from lm_research.config import Config
from lm_research.errors import DONE, STOPPED_BY_SIGNAL
from lm_research.parallel import processes
from lm_research.parallel.cpu_runtime import give_simulated_devices_threads, keep_freed_memory
from lm_research.run import run_directory
from lm_research.run.checkpoint_reading import saved_so_far
from lm_research.run.fit import fit


def main(config: Config, workdir: pathlib.Path) -> int:
    """Run the command and return the exit code."""
    keep_freed_memory()
    give_simulated_devices_threads()
    with (
        processes.joined(workdir) as is_main,
        reporting_disk_errors(lambda: saved_so_far(workdir / "checkpoints"), workdir),
    ):
        with run_directory.lock(workdir) if is_main else contextlib.nullcontext():  # until it ends, however it ends
            result = fit(config, workdir)
    return STOPPED_BY_SIGNAL if result.status == "stopped" else DONE


if __name__ == "__main__":
    cli.run(main, command="train", summary="Pre-train a language model on text, or fine-tune one for a task.")
