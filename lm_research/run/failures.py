"""Failures that end a run early: a loss that is not finite, or damaged text."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from lm_research.common.disk import atomic_file
from lm_research.data.sampler import BatchBuilder
from lm_research.data.verify import Verification
from lm_research.errors import DataError, NonFiniteLoss
from lm_research.parallel import exchange
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.summary import summarize
from lm_research.training.state import State


def raise_if_damaged(verification: Verification, checkpoints: Checkpoints) -> None:
    """Raise a DataError in all processes if the text turned out to be damaged. All processes must call this.

    Raises:
      DataError: the text is damaged; checkpoints that may have been trained on it were moved aside.
    """
    damage = verification.damage
    if exchange.all_processes(damage is None):
        if exchange.all_processes(not verification.pending):
            checkpoints.trust_all()
        return
    message = str(damage or "Another process has found damage in its token store; see its log.")
    raise DataError(f"{message} {checkpoints.distrust()}")


def raise_if_halted(state: State, feed: BatchBuilder, workdir: pathlib.Path, checkpoints: Checkpoints) -> None:
    """End the run if a loss was not finite: save the state from before it and the batch that caused it.

    This waits for dispatched steps.

    Raises:
      NonFiniteLoss: a loss was not finite; the message names the step, the checkpoint and the file of the batch.
    """
    step = int(state["halted"])
    if step < 0:
        return
    suffix = f"_process_{jax.process_index()}" if jax.process_index() else ""  # each process has its own rows
    path = workdir / "nonfinite" / f"step_{step + 1}{suffix}.npz"
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        np.savez(file, **feed(step))  # type: ignore[arg-type]  # numpy's types take a name for its option
    checkpoints.save(state)
    checkpoints.close()
    summarize(state, workdir, "nonfinite", None)
    raise NonFiniteLoss(
        f"Step {step + 1} has a NaN or infinite loss or gradient. The state before it is saved as checkpoint {step}, its batch "
        f"in {path}. Lower optimizer.learning_rate or lengthen the warm-up in a new --workdir, or continue without such updates with "
        "--config.train.on_nonfinite=skip."
    )
