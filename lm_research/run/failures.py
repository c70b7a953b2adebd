"""What ends a run before its time: a loss that is not finite, text that turns out to be damaged."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from lm_research.common.disk import atomic_file
from lm_research.data.sampler import BatchBuilder
from lm_research.data.verify import Verification
from lm_research.errors import DataError, NonFiniteLoss
from lm_research.parallel import processes
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.summary import summarize
from lm_research.training.state import State


def raise_if_damaged(verification: Verification, checkpoints: Checkpoints) -> None:
    """Ends the run where the text it reads has turned out to be damaged, in all processes, who must come here together.

    Raises:
      DataError: and what may have been learnt from it is no checkpoint any more.
    """
    damage = verification.damage
    if processes.all_processes(damage is None):
        if processes.all_processes(not verification.pending):
            checkpoints.trust_all()
        return
    words = str(damage or "Another process has found damage in its token store; its log has the words.")
    raise DataError(f"{words} {checkpoints.distrust()}")


def raise_if_halted(state: State, feed: BatchBuilder, workdir: pathlib.Path, checkpoints: Checkpoints) -> None:
    """Ends the run at a loss that was not finite: saves the state from before it and the batch that caused it.

    Waits for the steps under way.

    Raises:
      NonFiniteLoss: with the step and where things were saved.
    """
    step = int(state["halted"])
    if step < 0:
        return
    own = f"_process_{jax.process_index()}" if jax.process_index() else ""  # each holds its own rows
    path = workdir / "nonfinite" / f"step_{step + 1}{own}.npz"
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        np.savez(file, **feed(step))  # type: ignore[arg-type]  # numpy's types take a name for its option
    checkpoints.save(state)
    checkpoints.close()
    summarize(state, workdir, "nonfinite", None)
    raise NonFiniteLoss(
        f"Step {step + 1} has a NaN or infinite loss or gradient. The state before it is saved as checkpoint {step}, its batch "
        f"in {path}. Lower optimizer.learning_rate or lengthen the warm-up in a new --workdir, or go on without such updates by "
        "--config.train.on_nonfinite=skip."
    )
