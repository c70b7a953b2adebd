"""What the processes of a run tell each other: that they have arrived, texts, flags and numbers.

All processes call these functions at the same places; in a run of a single process they cost nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm_research.errors import STOPPED_BY_SIGNAL
from lm_research.parallel.processes import BUILD, LOST, SAVE, STEP, log_name, timeout_seconds
from lm_research.parallel.rendezvous import PodError


@contextlib.contextmanager
def process_0_first(what: str) -> Iterator[None]:
    """Run the body in process 0 first, then in all others, which find its results.

    Args:
      what: name of the barrier, unique within the run.

    Raises:
      PodError: process 0 exceeded the time limit.
    """
    if jax.process_index() != 0:
        wait_for_all(what)
    yield
    if jax.process_index() == 0:
        wait_for_all(what)


def wait_for_all(what: str) -> None:
    """Wait until all processes have called this function with the same name, which must be unique within the run.

    Raises:
      PodError: some processes did not within the time limit.
      jax.errors.JaxRuntimeError: a process is lost.
    """
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state  # public barriers have a fixed limit of five minutes

    client = global_state.client
    assert client is not None, "several processes are connected"
    try:
        client.wait_at_barrier(f"lm_research/{what}", int(1000 * timeout_seconds(BUILD)))
    except jax.errors.JaxRuntimeError as error:
        if any(words in str(error) for words in LOST):
            raise
        raise PodError(
            f"{what}: not all processes arrived within {timeout_seconds(BUILD):g} s (set {BUILD[0]} to change the limit), or one has ended: "
            f"{' '.join(str(error).split())}"
        ) from error


class MissingProcess(PodError):
    """A process that does not come where the others wait for it."""

    exit_code = STOPPED_BY_SIGNAL  # nothing that was saved is lost, so that a launcher may start the run again


def meet(what: str, name: str, saved: Callable[[], str]) -> None:
    """Wait until all processes have called this function, for the time limit of SAVE.

    Args:
      what: what they are about to do, for the message: "save checkpoint 20".
      name: of the barrier, unique within the run.
      saved: makes sentences about what is saved.

    Raises:
      MissingProcess: some processes did not come in time.
      jax.errors.JaxRuntimeError: a process is lost.
    """
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state

    client, limit = global_state.client, timeout_seconds(SAVE)
    assert client is not None, "several processes are connected"
    try:
        client.wait_at_barrier(f"lm_research/{name}", int(1000 * limit))
    except jax.errors.JaxRuntimeError as error:
        if "timed out" not in str(error):
            raise
        names = str(error).partition("timed out task names")[2]  # one a line, in some versions with a prefix
        missing = sorted(map(int, re.findall(r"(\d+)$", names, re.MULTILINE)))
        shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        count = (
            "a process is" if not missing else f"process {shown} is" if len(missing) == 1 else f"processes {shown} are"
        )
        raise MissingProcess(
            f"{count} missing: the others waited {limit:g} s to {what}. It hangs, or runs another command: see its output and "
            f"{log_name(missing[0]) if missing else 'logs/'}. {saved()} Start the same command in every process; {SAVE[0]} sets the limit."
        ) from error


def collect_texts(name: str, text: str) -> list[str] | None:
    """Send a text to process 0, from any thread; return those of all processes, in their order, in process 0, and None in the others.

    Args:
      name: unique within the run.
      text: of this process, up to a few megabytes.

    Raises:
      jax.errors.JaxRuntimeError: a process is lost, or did not send its text within half an hour.
    """
    if jax.process_count() == 1:
        return [text]
    from jax._src.distributed import global_state

    client, key = global_state.client, f"lm_research/{name}"
    assert client is not None, "several processes are connected"
    if jax.process_index():
        client.key_value_set(f"{key}/{jax.process_index()}", text)
        return None
    limit = int(1000 * timeout_seconds(STEP))
    texts = [client.blocking_key_value_get(f"{key}/{number}", limit) for number in range(1, jax.process_count())]
    client.key_value_delete(f"{key}/")
    return [text, *texts]


def share_texts(name: str, text: str) -> list[str]:
    """Return the texts of all processes, in their order; `name` is unique within the run. All processes must call this."""
    if jax.process_count() == 1:
        return [text]
    from jax._src.distributed import global_state

    client = global_state.client
    assert client is not None, "several processes are connected"
    client.key_value_set(f"lm_research/{name}/{jax.process_index()}", text)
    limit = int(1000 * timeout_seconds(STEP))
    return [
        client.blocking_key_value_get(f"lm_research/{name}/{number}", limit) for number in range(jax.process_count())
    ]


def broadcast_flag(value: bool) -> bool:
    """Return process 0's `value` in all processes. This is a collective: all processes must call it at the same place."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(value))


def all_processes(value: bool) -> bool:
    """Return whether `value` is true in all processes; a collective like `broadcast_flag`."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.array([value])).all())


def broadcast_numbers(numbers: Sequence[int]) -> list[int]:
    """Return process 0's `numbers` (below 2**31) in all processes; a collective like `broadcast_flag`, with equal lengths."""
    if jax.process_count() == 1:
        return [int(number) for number in numbers]
    return multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32)).tolist()


def sum_over_processes(counts: np.ndarray, what: str) -> np.ndarray:
    """Sum counts (each below 2**31) over all processes, int64; `what` is the name of the barrier, unique within the run."""
    if jax.process_count() == 1:
        return counts
    wait_for_all(what)
    return multihost_utils.process_allgather(counts.astype(np.int32)).astype(np.int64).sum(0)
