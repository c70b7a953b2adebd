"""metrics.jsonl: every number in full precision, nothing filtered, and after a restart only the lines that still hold."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import struct

import pytest
from tensorboardX.proto import event_pb2

from lm_research.run.metrics_log import MetricsWriter, find_gaps, read_metrics
from lm_research.run.trackers.threads import Trackers


def write(workdir: pathlib.Path, steps: range, resume: int = 0, trackers: tuple[str, ...] = ()) -> None:
    writer = MetricsWriter(workdir, trackers, resume)
    for step in steps:
        writer.write(step, {"loss_nats": 1 / (step + 1)})
    writer.close()


def test_numbers_round_trip_bit_for_bit(tmp_path: pathlib.Path) -> None:
    values = {"a": 1 / 3, "b": 5e-324, "c": math.inf, "d": math.nan, "e": 2**53 + 1, "f": 0.1 + 0.2}
    writer = MetricsWriter(tmp_path, (), 0)
    writer.write(7, values)
    writer.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line.pop("d")) and math.isnan(values.pop("d"))
    assert line == {"step": 7, **values}


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: pathlib.Path) -> None:
    writer = MetricsWriter(tmp_path, (), 0)
    writer.write(1, {"x": 2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 2}]
    writer.close()


def test_a_restart_drops_the_lines_of_steps_that_are_taken_again(tmp_path: pathlib.Path) -> None:
    write(tmp_path, range(1, 8))
    write(tmp_path, range(6, 10), resume=5)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    writer = MetricsWriter(tmp_path, (), 8)
    assert writer.lines == 8  # step 9 is taken again
    writer.write(9, {"x": 1.0})
    assert writer.lines == 9
    writer.close()
    assert [line["step"] for line in lines] == [*range(1, 10)]
    assert [line["loss_nats"] for line in lines] == [1 / (step + 1) for step in range(1, 10)]


def test_a_line_torn_by_a_crash_is_dropped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for torn in (b'{"step": 3, "loss', b'{"step": 3, "loss_nats": 0.25', b"\0\0\0", b"{", b"\xff\xfe", b"3", b"{}\n"):
        write(tmp_path, range(1, 3))
        with open(path, "ab") as file:
            file.write(torn)
        assert [line["step"] for line in read_metrics(path)] == [1, 2]
        write(tmp_path, range(3, 5), resume=2)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
        path.unlink()


def test_no_file_has_no_lines(tmp_path: pathlib.Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_only_the_main_process_writes(tmp_path: pathlib.Path) -> None:
    writer = MetricsWriter(tmp_path, ("tensorboard",), 0, main_process=False)
    writer.write(1, {"x": 1.0})
    writer.write_text(1, "samples", "text")
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, KeyError])
def test_trackers_learn_whether_the_run_failed(
    error: type[Exception] | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(Trackers, "close", lambda self, failed: ended.append(failed))
    with contextlib.suppress(KeyError), MetricsWriter(tmp_path, (), 0):
        if error:
            raise error
    assert ended == [error is not None]


def events(folder: pathlib.Path) -> list[tuple[str, int, float | None]]:
    """(tag, step, number or None for text) of all values in a directory's event files.

    Records are a length (8 bytes), its checksum (4), the event, its checksum (4).
    """
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = event_pb2.Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                scalar = value.simple_value if value.HasField("simple_value") else None
                found.append((value.tag, event.step, scalar))
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path: pathlib.Path) -> None:
    writer = MetricsWriter(tmp_path, ("tensorboard",), 0)
    writer.write(3, {"loss_nats": 0.5, "eval_loss_nats": 0.25, "note": "not a number"})
    writer.write_text(3, "samples", "In the beginning\nwas")
    writer.close()
    found = events(tmp_path / "tensorboard")
    assert ("train/loss_nats", 3, 0.5) in found and ("eval/loss_nats", 3, 0.25) in found
    assert any(tag.startswith("samples") and step == 3 for tag, step, _ in found)
    assert not any("note" in tag for tag, _, _ in found)


LINES = [{"step": step} for step in (10, 20, 25, 30)]  # every 10 steps, and an evaluation after 25


@pytest.mark.parametrize(
    ("left", "written", "says"),
    [
        (LINES, 4, ""),
        (LINES, None, ""),  # a checkpoint that does not record how many there were
        ([], None, "all lines up to step 30 are missing (steps 1 to 30)"),
        ([], 4, "all lines up to step 30 are missing (steps 1 to 30)"),
        (LINES[:1], 4, "3 of its lines up to step 30 are missing (steps 11 to 30)"),
        (LINES[3:], 4, "3 of its lines up to step 30 are missing (steps 1 to 30)"),
        (LINES[:2] + LINES[3:], 4, "1 of its lines up to step 30 are missing."),
        ([LINES[0], LINES[3]], 4, "2 of its lines up to step 30 are missing (steps 11 to 30)"),
    ],
)
def test_gaps(left: list[dict], written: int | None, says: str) -> None:
    found = find_gaps(left, 30, 10, written)
    assert says in found and bool(found) == bool(says)


def test_no_lines_are_due_before_the_first_one() -> None:
    assert find_gaps([], 9, 10, None) == find_gaps([], 9, 10, 0) == ""


def test_damaged_lines_are_left_out_and_kept_elsewhere(tmp_path: pathlib.Path) -> None:
    """Whatever a line holds: no step number, JSON that is too deep or too long for Python, or invalid UTF-8."""
    path, told = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"step": 1}\n{"st')  # what a crash cuts off is no damage
    MetricsWriter(tmp_path, (), 3, warn=told.append).close()
    assert not told and [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    bad = [b'{"step": "2"}', b"[" * 10**5, b'{"step": ' + b"1" * 5000 + b"}", b'{"step": true}', b'\xff{"step": 2}']
    path.write_bytes(b"\n".join([b'{"step": 1}', *bad, b'{"step": 3}', b'{"step": 4}', b'{"st']))
    before = path.read_bytes()
    MetricsWriter(tmp_path, (), 3, warn=told.append).close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert len(told) == 1 and str(tmp_path / "metrics.jsonl.damaged") in told[0]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
