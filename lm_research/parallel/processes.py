"""Runs of several processes: connecting, agreeing and ending together.

Every process of a run executes the same program on its own rows of each batch. Processes find each other through the flags
--coordinator, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which the flags
set), or else through the environments that jax.distributed supports: Slurm, GKE and TPU pods. Otherwise there is a single process, and
everything here costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import glob
import math
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.util import find_spec

import jax
from jax.experimental import multihost_utils

from lm_research.common import buckets, interrupts
from lm_research.common.documents import whole_number
from lm_research.common.paths import is_remote
from lm_research.config.run_files import newest_step
from lm_research.errors import BUG, REPORTED_ERRORS, STOPPED_BY_SIGNAL, UserError
from lm_research.parallel.peers import Peers, heartbeats_end
from lm_research.parallel.rendezvous import PodError, join_rendezvous

# Time limits in seconds, each with the environment variable that changes it.
START = ("LM_RESEARCH_START_SECONDS", 300.0)  # for all processes to start
HEARTBEAT = ("LM_RESEARCH_HEARTBEAT_SECONDS", 60.0)  # of silence, after which a process counts as dead
STEP = ("LM_RESEARCH_STEP_SECONDS", 1800.0)  # between two steps, including an evaluation or a compilation
SAVE = ("LM_RESEARCH_SAVE_SECONDS", 300.0)  # for all processes to come to a save
BUILD = (
    "LM_RESEARCH_BUILD_SECONDS",
    86400.0,
)  # for process 0 to do what the others wait for, such as building a corpus
_PREEMPTION = "jax_enable_preemption_service"
_LEAVING = "lm_research/interrupted"  # key that a process sets when a signal ends it before the first step
_LOOK = 0.2  # seconds between checks of that key
_LAST_WORDS = 10.0  # seconds to write a line to the log before the process ends
# Messages of a collective when a process that it waits for is gone (gloo, NCCL, and jax.distributed's own service).
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "heartbeat timeout",
    "Socket closed",
    "stopped sending heartbeats",
    "ncclRemoteError",
    "remote process exited",
)
_LATE = ("DEADLINE_EXCEEDED", "Timed out waiting")  # messages when a process does not answer, or is late
_peers: list[Peers] = []  # connections of this process once it has joined the others
_ending = threading.Lock()
_joined: list[
    tuple[ProcessInfo, pathlib.Path]
] = []  # where this process stands, while it is one of many, and its run's folder
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Process of a run: HOST:PORT of process 0, number of processes, and number of this one."""

    coordinator: str
    num_processes: int
    process_id: int


def timeout_seconds(limit: tuple[str, float]) -> float:
    """Return a time limit: the value of its variable, or its default; raise a PodError if that is not a positive number."""
    name, default = limit
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise PodError(f"{name}={text} is not a positive number of seconds. Write for example {name}={default:g}.")
    return value


def find_process() -> ProcessInfo | None:
    """Return this process's number among those of the run, or None if the run has a single process.

    Raises:
      PodError: the flags are incomplete or invalid.
    """
    values = [os.environ.get(name, "") for name in _NAMES]
    if any(values[1:]):
        return _from_flags(values)
    if not (_many_tasks() or _on_tpu()):
        return None
    # jax's public API detects these only while it connects, which is too late to report missing processes.
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout_seconds(START)))
    coordinator, num_processes, process_id, _ = found
    if coordinator is None or not num_processes or num_processes == 1 or process_id is None:
        return None
    return ProcessInfo(coordinator, num_processes, process_id)


def _from_flags(values: list[str]) -> ProcessInfo:
    flags = ("--coordinator", "--num_processes", "--process_id")
    missing = [flag for flag, value in zip(flags, values, strict=True) if not value]
    if missing:
        raise PodError(f"{' and '.join(missing)} must be given too: the three flags {', '.join(flags)} go together.")
    coordinator, num_processes, process_id = values
    host, _, port = coordinator.rpartition(":")
    if not host or not 0 < (whole_number(port) or 0) < 65536:
        raise PodError(f"--coordinator={coordinator} is not HOST:PORT, for example 10.0.0.1:8476.")
    count, number = whole_number(num_processes), whole_number(process_id)
    if count is None or number is None or not number < count < 2**20:
        raise PodError(
            f"--num_processes={num_processes} and --process_id={process_id} are not valid together: processes are numbered from 0 to "
            "--num_processes minus 1."
        )
    return ProcessInfo(coordinator, count, number)


def _many_tasks() -> bool:
    """Return whether Slurm's srun started several processes (a shell inside an allocation does not count)."""
    return os.environ.get("SLURM_NTASKS", "1") != "1" and {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= os.environ.keys()


def _on_tpu() -> bool:
    """Return whether this machine has TPU chips that jax will use."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or os.environ.get("TPU_WORKER_HOSTNAMES")
    return (not platforms or "tpu" in platforms) and bool(chips) and find_spec("libtpu") is not None


@contextlib.contextmanager
def joined(workdir: pathlib.Path) -> Iterator[bool]:
    """Connect this process with the others of its run while the context lasts. It must be entered before JAX's first use of a device.

    If a process raises an exception inside, it ends at once instead of waiting in a barrier that no other process reaches. The others
    end too: at once if a process has ended or was killed, within the heartbeat's time limit if it does not answer.

    Args:
      workdir: directory of the run. Process N > 0 logs the reason for its end to logs/process_N.txt there, process 0 to log.txt.

    Yields:
      Whether this is process 0.

    Raises:
      PodError: not all processes started in time, or their flags are inconsistent.
    """
    place = find_process()
    if place is None:
        yield True
        return
    connections = join_rendezvous(place.coordinator, place.num_processes, place.process_id, timeout_seconds(START))
    leave = functools.partial(_leave_lost, place, workdir)
    _peers.append(Peers(connections, leave))
    _peers[-1].patience = timeout_seconds(HEARTBEAT)
    try:
        jax.config.update(_PREEMPTION, False)  # until the first step, see `agree_on_stops`
        with heartbeats_end(leave):
            jax.distributed.initialize(
                place.coordinator,
                place.num_processes,
                place.process_id,
                cluster_detection_method="deactivate",
                initialization_timeout=int(timeout_seconds(START)),
                heartbeat_timeout_seconds=max(1, int(timeout_seconds(HEARTBEAT))),
            )
        _peers[-1].patience = math.inf
        threading.Thread(target=_leave_together, daemon=True).start()
        _joined[:] = [(place, workdir)]
        yield place.process_id == 0
        _joined.clear()
        end_watch()
        jax.distributed.shutdown()
        _peers[-1].close()
    except BaseException as error:
        _leave(error, place, workdir)


def _leave_together() -> None:
    """Before the first step, end all processes if one receives a signal; jax.distributed itself coordinates only between steps."""
    from jax._src.distributed import global_state

    while global_state.client is not None and global_state.preemption_sync_manager is None:
        if interrupts.signal_received():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                global_state.client.key_value_set(_LEAVING, "", allow_overwrite=True)
            return
        if _has_left():
            time.sleep(0 if jax.process_index() else 5 * _LOOK)  # the others still need process 0 for a moment
            _peers[-1].ends(jax.process_index(), STOPPED_BY_SIGNAL)
            interrupts.exit_now()
        time.sleep(_LOOK)


def end_all(error: UserError) -> None:
    """End all processes of the run, from any thread; do nothing in a run of a single process."""
    if _joined:
        _leave(error, *_joined[0])


def _has_left() -> bool:
    """Return whether a process has ended because of a signal before the first step."""
    from jax._src.distributed import global_state

    client = global_state.client
    try:
        return client is not None and client.key_value_try_get(_LEAVING) is not None
    except jax.errors.JaxRuntimeError:  # the key is not set, or the coordinator is gone
        return False


def agree_on_stops() -> None:
    """Let jax.distributed handle SIGTERM from now on, so that all processes stop at the same step."""
    if jax.process_count() > 1:
        from jax._src.distributed import global_state

        jax.config.update(_PREEMPTION, True)
        global_state.initialize_preemption_sync_manager()


def _leave(error: BaseException, place: ProcessInfo, workdir: pathlib.Path) -> None:
    """Report the cause on standard error and in this process's log, and end the process without waiting for others."""
    if isinstance(error, interrupts.Interrupted):
        interrupts.write_message()
        _peers[-1].ends(place.process_id, STOPPED_BY_SIGNAL)
        time.sleep(2 * _LOOK if place.process_id else 4 * _LOOK)  # so that the others learn of it from process 0
        os._exit(STOPPED_BY_SIGNAL)
    sys.stdout.flush()
    expected = isinstance(error, REPORTED_ERRORS)
    if not expected:
        words = LOST if _peers[-1].silent() is None else LOST + _LATE
        lost = any(word in str(error) for word in words)
        wait = 10 * _LOOK if isinstance(error, jax.errors.JaxRuntimeError) else 3 * _LOOK
        if _peers[-1].wait(wait) or lost:
            _leave_lost(place, workdir)
    cause = f"error: {error}" if expected else "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, jax.errors.JaxRuntimeError):
        cause += "\nProbably another process of this run ended first: its output has the cause."
    _end(cause, error.exit_code if isinstance(error, REPORTED_ERRORS) else BUG, place, workdir)


def _leave_lost(place: ProcessInfo, workdir: pathlib.Path) -> None:
    """End this process because another one is lost; callable from any thread, whatever the main thread waits for."""
    silent = _peers[-1].silent()
    news = _peers[-1].news if silent is not None else _peers[-1].wait(5 * _LOOK)  # process 0 may have more information
    if interrupts.signal_received() or (news is not None and news.code == STOPPED_BY_SIGNAL):
        _peers[-1].ends(place.process_id, STOPPED_BY_SIGNAL)
        interrupts.exit_now()
    code = STOPPED_BY_SIGNAL
    if news is not None and news.code is not None:
        code = news.code
        cause = f"process {news.number} of this run ended with exit code {code}; see its output and {log_name(news.number)}."
    else:
        number = news.number if news is not None else silent
        if place.process_id == 0 and number is not None:
            _peers[-1].ends(number, None)
        who = "another process" if number is None else f"process {number}"
        cause = f"{who} of this run is lost: it was killed, or no longer answers; its own output may have the cause."
        if number == place.process_id:  # it was suspended and has been continued
            cause = "it did not answer for too long, and the others ended without it."
    if code == STOPPED_BY_SIGNAL:
        newest = None
        with contextlib.suppress(Exception):  # of a bucket's client
            newest = newest_step(workdir / "checkpoints")
        saved = "No checkpoint has been saved yet" if newest is None else f"The newest checkpoint is of step {newest}"
        cause += f" {saved}; the same command, started in every process, resumes the run."
    _end(cause, code, place, workdir)


def _end(cause: str, code: int, place: ProcessInfo, workdir: pathlib.Path) -> None:
    """Write the cause and end the process; if several threads call this, the first one does it."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()
    text = f"process {place.process_id} of {place.num_processes} ends: {cause}\n"
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
    writing = threading.Thread(target=_append, args=(workdir / log_name(place.process_id), line), daemon=True)
    writing.start()
    writing.join(_LAST_WORDS)  # a bucket may not answer
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))
    if code != STOPPED_BY_SIGNAL:
        _peers[-1].ends(place.process_id, code)
    if place.process_id == 0:
        time.sleep(1)  # jax.distributed ends the others with process 0; let those with the same error report it first
    os._exit(code)


def _append(path: pathlib.Path, line: str) -> None:
    """Append a line to a log, if that is possible."""
    with contextlib.suppress(Exception):
        if is_remote(path):
            buckets.write(path, (path.read_bytes() if path.exists() else b"") + line.encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line)


def log_name(process_id: int) -> str:
    """Return the log file of a process, relative to the run's directory."""
    return f"logs/process_{process_id}.txt" if process_id else "log.txt"


def own_host() -> str:
    """Return the name or address by which the other processes reach this one's host."""
    if not _joined:
        return "localhost"
    place, _ = _joined[0]
    return _peers[-1].own_host() if place.process_id else place.coordinator.rpartition(":")[0].strip("[]")


def should_stop(step: int, here: bool) -> bool:
    """Return whether the run has to stop before `step`. The result is the same in all processes, whichever received the signal.

    With several processes, jax.distributed handles SIGTERM and forwards it, and all stop at the first step that none of them has
    started. All processes must call this before every step.

    Args:
      step: the next step.
      here: whether this process received a signal; used only in a run of a single process.
    """
    if jax.process_count() == 1:
        return here
    return multihost_utils.reached_preemption_sync_point(step)


def forward_to_preemption() -> None:
    """Forward a signal that this process received to jax.distributed, as SIGTERM."""
    signal.raise_signal(signal.SIGTERM)


def watch_step() -> None:
    """Restart the timer of a step. With several processes, a process that exceeds the time limit ends, and the others with it.

    It prints the stack of every thread first, to show where it hung.
    """
    if jax.process_count() > 1:
        faulthandler.dump_traceback_later(timeout_seconds(STEP), exit=True)


def end_watch() -> None:
    """Stop the timer of `watch_step`."""
    faulthandler.cancel_dump_traceback_later()
