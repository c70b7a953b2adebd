"""Which tests reach which functions, and running them in a copy of the tree."""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Calls:
    """A pytest plug-in: which functions of lm_research each test calls, and its seconds."""

    def __init__(self, place: Path, out: Path) -> None:
        self.place, self.out, self.tests, self.found = f"{place}/lm_research/", out, {}, set()

    def note(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.place):
            self.found.add((frame.f_code.co_filename[len(self.place) - 12 :], frame.f_code.co_firstlineno))

    def pytest_runtest_protocol(self, item: Any) -> None:
        self.found, self.begun = set(), time.monotonic()
        threading.setprofile(self.note)
        sys.setprofile(self.note)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "teardown":
            sys.setprofile(None)
            self.tests[report.nodeid] = [time.monotonic() - self.begun, sorted(self.found)]
        if report.failed:
            self.tests.pop(report.nodeid, None)

    def pytest_sessionfinish(self) -> None:
        self.out.write_text(json.dumps(self.tests))


def start(place: Path, tests: list[str], plugins: list[Any], cpu_seconds: int) -> int:
    """The id of a forked process that runs tests in a copy of the tree."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(place)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    log = os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ["PYTHONPATH"], sys.path[:] = (
        str(place),
        [str(place), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)],
    )
    import pytest

    code = 70
    try:
        options = [
            "-q",
            "-oaddopts=",
            "-mnot slow and not fuzz",
            "-pno:cacheprovider",
            "-pno:unraisableexception",
            "--tb=line",
            f"--basetemp={place}.tmp",
        ]
        code = pytest.main([*options, *([] if plugins else ["-x"]), *tests], plugins=plugins)
    finally:
        os._exit(int(code))


def calls(places: list[Path], tests: list[Path], work: Path) -> dict[str, Any]:
    """By test, [seconds, functions called], each test file run once and kept until it changes."""
    waiting, running, found = [], {}, {}
    for test in tests:
        out = work / "calls" / f"{test.relative_to(ROOT).as_posix().replace('/', '+')}.json"
        out.parent.mkdir(exist_ok=True)
        if not out.exists() or out.stat().st_mtime < test.stat().st_mtime:
            waiting.append((test, out))
        found[test] = out
    free = list(places)
    while waiting or running:
        if waiting and free:
            (test, out), place = waiting.pop(0), free.pop()
            running[start(place, [str(test.relative_to(ROOT))], [Calls(place, out)], 600)] = place
        else:
            pid, _ = os.wait()
            free.append(running.pop(pid))
    return {
        name: entry for out in found.values() if out.exists() for name, entry in json.loads(out.read_text()).items()
    }


def chosen(mutation: dict[str, Any], tests: dict[str, Any], limit: float) -> list[str]:
    """The quickest tests that call the mutated function, or for code outside functions those that call anything in the file."""

    def here(file, line):
        return file == mutation["file"] and mutation["function"] in (0, line)

    reach = [(seconds, name) for name, (seconds, found) in tests.items() if any(here(*one) for one in found)]
    reach.sort()
    total = itertools.accumulate(seconds for seconds, _ in reach)
    return [
        name for place, ((_, name), used) in enumerate(zip(reach, total, strict=True)) if not place or used <= limit
    ]
