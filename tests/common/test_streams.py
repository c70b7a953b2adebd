"""Standard streams that are closed, full, or not read to the end."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from lm_research.common import streams

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPARE = "python -m lm_research.compare"
MISTAKE = f"{COMPARE} /no/such/a /no/such/b"
LONG = """python -c '
from lm_research import cli
def main():
    for number in range(20000):
        print("line", number)
    return 0
cli.start(main)'"""


def shell(command: str) -> tuple[int, str, str]:
    """Exit code of the first command of a pipeline, and both outputs."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {
        **os.environ,
        "PYTHONPATH": paths,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], env=settings, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{LONG} | head -1", 0),
        (f"{LONG} 2>&1 | head -1", 0),
        (f"{LONG} >&-", 0),
        (f"{LONG} <&- >&- 2>&-", 0),
        (f"{COMPARE} --help >&-", 0),
        (f"{MISTAKE} 2>&-", 2),
        (f"{MISTAKE} 2>/dev/full", 2),
        (f"{LONG} >/dev/full 2>/dev/full", 2),
    ],
)
def test_an_unread_output_gives_no_traceback(command: str, code: int) -> None:
    found, _, output = shell(command)
    assert (found, output) == (code, "")


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="Linux lists open files there")
def test_a_stream_that_fails_keeps_its_number_and_its_first_error() -> None:
    number = os.open("/dev/full", os.O_WRONLY)
    stream, before = streams.Lossy(number, sys.stdout), set(os.listdir("/proc/self/fd"))
    assert stream.write("x") == 1 and stream.failure is None
    stream.flush()
    assert stream.failure is not None and stream.failure.errno == errno.ENOSPC
    assert os.readlink(f"/proc/self/fd/{number}") == os.devnull
    assert set(os.listdir("/proc/self/fd")) == before  # no other file stays open
    stream.write("y")
    stream.flush()
    os.close(number)


@pytest.mark.parametrize("command", [LONG, f"{COMPARE} --help"])
def test_a_full_output_is_reported(command: str) -> None:
    code, _, output = shell(f"{command} >/dev/full")
    assert code == 2 and output.count("\n") == 1
    assert output.startswith("error: Standard output cannot be written: No space left on device.")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "data"
    code = f"from lm_research.common import interrupts as leaving; import os; file = open({str(path)!r}, 'w'); os.write(1, b'for people'); file.close()"
    assert shell(f'python -c "{code}" >&-')[0] == 0
    assert path.read_bytes() == b""
