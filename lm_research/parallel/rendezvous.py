"""Rendezvous of all processes of a run on the coordinator's port, before jax.distributed uses it.

If some processes do not start, jax.distributed ends the others without naming the missing ones. Here process 0 counts the processes,
and reports to all of them which ones are missing, or that two have the same number.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time

from lm_research.errors import UserError

_GO = "go"


class PodError(UserError):
    """Processes that cannot find each other, or have inconsistent flags."""


def join_rendezvous(coordinator: str, num_processes: int, process_id: int, seconds: float) -> dict[int, socket.socket]:
    """Wait until all processes have called this function.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes of the run.
      process_id: number of this process, 0 ... num_processes - 1.
      seconds: time limit.

    Returns:
      Connections by process: those of process 0 to all others, or that of another process to process 0.

    Raises:
      PodError: processes are missing after the time limit, or their flags are inconsistent; the message names them.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    if process_id == 0:
        answer, connections = _count(coordinator, int(port), num_processes, deadline, seconds)
    else:
        answer, connections = _report(host.strip("[]"), int(port), num_processes, process_id, deadline, seconds)
    if answer != _GO:
        for connection in connections.values():
            connection.close()
        raise PodError(answer)
    return connections


def _listen(coordinator: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise PodError(
            f"Process 0 cannot listen on port {port} of --coordinator={coordinator}: {error.strerror}. Choose a free port, or "
            "end the remaining processes of an earlier run."
        ) from error


def _count(
    coordinator: str, port: int, num_processes: int, deadline: float, seconds: float
) -> tuple[str, dict[int, socket.socket]]:
    """Collect the reports of all other processes in process 0, and send all of them the same answer.

    Returns:
      The answer, and the connections by process.
    """
    present: dict[int, socket.socket] = {}
    answer = _GO
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(coordinator, port))
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        while len(present) < num_processes - 1 and answer == _GO:
            left = deadline - time.monotonic()
            ready = {key.fileobj for key, _ in selector.select(left)} if left > 0 else set()
            if not ready:
                missing = sorted(set(range(1, num_processes)) - present.keys())
                answer = _missing(missing, num_processes, seconds)
                break
            for number, connection in list(present.items()):
                if connection in ready:  # closed: the process has ended, and may be started again
                    selector.unregister(present.pop(number))
                    connection.close()
            if server not in ready:
                continue
            connection = server.accept()[0]
            connection.settimeout(5)
            report = _read_line(connection).split()
            if len(report) != 2 or not all(word.isdigit() for word in report):
                connection.close()
                continue  # not a process of a run, such as a port scanner
            number, total = map(int, report)
            if total != num_processes:
                answer = f"Process {number} has --num_processes={total}, but process 0 has {num_processes}. Use the same value."
            elif number in present or not 0 < number < num_processes:
                answer = (
                    f"Two processes have --process_id={number}. Use a different one in each, 0 to {num_processes - 1}."
                )
            present[len(present) + num_processes if number in present else number] = connection
            selector.register(connection, selectors.EVENT_READ)
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(f"{answer}\n".encode())
    return answer, present


def _missing(missing: list[int], num_processes: int, seconds: float) -> str:
    shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return (
        f"After {seconds:g} s {len(missing)} of {num_processes} processes are missing: {shown}. Look at their output, check that "
        "they have the same coordinator and can reach its port, and start all of them again."
    )


def _report(
    host: str, port: int, num_processes: int, process_id: int, deadline: float, seconds: float
) -> tuple[str, dict[int, socket.socket]]:
    """Connect to process 0, which may start later, send it this process's flags and wait for its answer."""
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            connection.sendall(f"{process_id} {num_processes}\n".encode())
            connection.settimeout(max(deadline - time.monotonic(), 0) + 5)  # process 0 may have started to wait later
            answer = _read_line(connection)
            if answer:
                return answer, {0: connection}
            connection.close()
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    answer = (
        f"Process {process_id} could not reach process 0 at {host}:{port} within {seconds:g} s ({reason}). Check that process 0 "
        "is running and that --coordinator is its address and reachable from the others."
    )
    return answer, {}


def _read_line(connection: socket.socket) -> str:
    content = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while not content.endswith(b"\n") and len(content) < 4096:
            piece = connection.recv(1)  # bytes after the line belong to peers.py
            if not piece:
                break
            content += piece
    return content.decode(errors="replace").strip()
