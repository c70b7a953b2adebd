"""The place of a process, the processes that are missing, and that a single process has no overhead."""

from __future__ import annotations

import concurrent.futures
import pathlib
import socket

import jax
import pytest

from lm_research import cli
from lm_research.parallel import exchange, processes
from lm_research.parallel.rendezvous import PodError, join_rendezvous

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLD = {"JAX_COORDINATOR_ADDRESS": "host:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what this machine's own environment sets about processes."""
    for name in (*TOLD, "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def test_a_single_process() -> None:
    assert processes.find_process() is None
    with processes.joined(pathlib.Path("never_made")) as is_main:
        assert is_main
    assert exchange.broadcast_flag(True) and not exchange.broadcast_flag(False)
    assert processes.should_stop(3, True) and not processes.should_stop(3, False)
    with exchange.process_0_first("nothing"):
        pass


def test_an_exception_of_a_single_process_is_unchanged() -> None:
    with pytest.raises(ValueError, match="mine"), processes.joined(pathlib.Path("never_made")):
        raise ValueError("mine")


def test_flags_become_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in TOLD:
        monkeypatch.setenv(name, "")  # so that settings from the flags are restored
    flags = ["--coordinator=host:8476", "--num_processes=4", "--process_id", "3"]
    cli.parse([f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}", *flags])
    assert processes.find_process() == processes.ProcessInfo("host:8476", 4, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"JAX_COORDINATOR_ADDRESS": ""}, "--coordinator must be given too"),
        ({"JAX_COORDINATOR_ADDRESS": "", "JAX_PROCESS_ID": ""}, "--coordinator and --process_id must be given too"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "--coordinator=host is not HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "host:99999"}, "is not HOST:PORT"),
        ({"JAX_PROCESS_ID": "4"}, "--num_processes=4 and --process_id=4 are not valid together"),
        ({"JAX_PROCESS_ID": "-1"}, "are not valid together"),
        ({"JAX_NUM_PROCESSES": "four"}, "--num_processes=four"),
    ],
)
def test_an_incomplete_place_is_refused(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], said: str) -> None:
    for name, value in (TOLD | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PodError, match=said):
        processes.find_process()


def test_slurm_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of srun for the sixth task of eight on four nodes; jax derives the port from the job's number."""
    step = {
        "SLURM_JOB_ID": "71",
        "SLURM_STEP_NODELIST": "gpu[003-004,007-008]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    place = processes.find_process()
    assert (place.num_processes, place.process_id) == (8, 5)
    assert place.coordinator.partition(":")[0] == "gpu003"
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # a shell that salloc opened: no other task runs this
    assert processes.find_process() is None


def test_a_limit_is_a_positive_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.timeout_seconds(processes.HEARTBEAT) == 60
    monkeypatch.setenv("LM_RESEARCH_HEARTBEAT_SECONDS", "12.5")
    assert processes.timeout_seconds(processes.HEARTBEAT) == 12.5
    monkeypatch.setenv("LM_RESEARCH_HEARTBEAT_SECONDS", "soon")
    with pytest.raises(PodError, match="LM_RESEARCH_HEARTBEAT_SECONDS=soon is not a positive number"):
        processes.timeout_seconds(processes.HEARTBEAT)


def answers(calls: list[tuple[int, int]], seconds: float) -> list[str]:
    """The answers of join_rendezvous to processes (number, number of processes given), all at once; "" means success."""
    address = free_address()

    def one(process_id: int, num_processes: int) -> str:
        try:
            join_rendezvous(address, num_processes, process_id, seconds)
        except PodError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(one, *call) for call in calls]]


def test_all_processes_arrive() -> None:
    assert answers([(0, 5), (4, 5), (2, 5), (1, 5), (3, 5)], 20) == [""] * 5
    assert answers([(0, 1)], 20) == [""]


def test_every_process_learns_which_is_missing() -> None:
    said = answers([(0, 5), (1, 5), (3, 5)], 2.0)
    assert all("After 2 s 2 of 5 processes are missing: 2, 4." in text for text in said), said


def test_two_with_one_number_and_two_with_other_totals() -> None:
    said = answers([(0, 3), (1, 3), (1, 3)], 20)
    assert all("Two processes have --process_id=1" in text for text in said), said
    said = answers([(0, 3), (2, 4)], 20)
    assert all("Process 2 has --num_processes=4, but process 0 has 3" in text for text in said), said


def test_process_0_is_missing() -> None:
    (said,) = answers([(1, 2)], 1.0)
    assert "Process 1 could not reach process 0 at localhost:" in said and "within 1 s" in said


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as taken:
        with pytest.raises(PodError, match="Process 0 cannot listen on port"):
            join_rendezvous(f"localhost:{taken.getsockname()[1]}", 2, 0, 1.0)


def test_a_stranger_on_the_port_changes_nothing() -> None:
    address = free_address()
    host, port = address.split(":")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(join_rendezvous, address, 2, 0, 20.0)
        for _ in range(200):
            try:
                with socket.create_connection((host, int(port)), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except OSError:
                pass
        join_rendezvous(address, 2, 1, 20.0)
        first.result()


def test_the_watch_is_off_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    armed = []
    monkeypatch.setattr(processes.faulthandler, "dump_traceback_later", lambda seconds, exit: armed.append(seconds))
    processes.watch_step()
    assert armed == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setenv("LM_RESEARCH_STEP_SECONDS", "7")
    processes.watch_step()
    assert armed == [7.0]
