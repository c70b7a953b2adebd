"""Full disks, lost rights and other refusals of the operating system: one paragraph, exit code 2, nothing partially written."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import resource
import shutil
import sqlite3
import types

import numpy as np
import pytest

from lm_research import cli, plan
from lm_research.common import disk
from lm_research.data.store import write_store
from lm_research.errors import UserError
from lm_research.interop import tensor_types
from lm_research.interop.tensor_writer import write_tensors

FULL = "/dev/full"  # Linux: every write to it fails with ENOSPC


def test_a_write_to_a_full_disk_names_file_reason_space_and_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(8_388_608, 8_000_000, 388_608))

    def action() -> None:
        with open(FULL, "w") as file, disk.with_filename("/runs/a/metrics.jsonl"):
            file.write("x")
            file.flush()

    assert cli.guarded(action) == 2
    output = capsys.readouterr().err
    assert output.splitlines() == [
        "error: /runs/a/metrics.jsonl cannot be written: No space left on device (389 kB of 8.39 MB are free). Free some space there, then run "
        "the same command again."
    ]


@pytest.mark.parametrize("number", sorted(disk.FIXES), ids=lambda number: errno.errorcode[number])
def test_every_error_is_a_paragraph(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise OSError(number, os.strerror(number), "/runs/a")

    assert cli.guarded(action) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and output.startswith("error: /runs/a cannot be ") and os.strerror(number) in output


def full_database() -> None:
    """SQLite at its maximum number of pages: its own message for a full disk."""
    base = sqlite3.connect(":memory:")
    base.execute("pragma max_page_count = 2")
    base.execute("create table t (x)")
    for _ in range(3):
        base.execute("insert into t values (zeroblob(5000))")


def wrapped_by_tensorstore() -> None:
    # As TensorStore 0.1 has it, shortened.
    raise ValueError(
        'RESOURCE_EXHAUSTED: Error writing local file "/runs/a/6/_sharding": Failed to write 24857 bytes to file 17: No space left '
        "on device [os_error_code='28']"
    )


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (full_database, "No space left on device"),
        (wrapped_by_tensorstore, "/runs/a/6/_sharding cannot be written: No space left on device"),
    ],
)
def test_libraries_may_wrap_it(action: object, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.guarded(action) == 2
    assert words in capsys.readouterr().err


def test_other_errors_are_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        try:
            open("/no/such/file")
        except FileNotFoundError:  # whose disk may well be full: the error is another one
            raise KeyError("a bug") from None

    def bug() -> None:
        try:
            open("/no/such/file")
        except FileNotFoundError:
            {}["a bug"]

    for one in (action, bug):
        assert cli.guarded(one) == 1
        assert "Traceback" in capsys.readouterr().err


def test_what_is_not_lost_is_reported() -> None:
    with (
        pytest.raises(disk.DiskError) as caught,
        disk.reporting_disk_errors(lambda: "Checkpoint 6 is whole.", pathlib.Path("/runs/a")),
    ):
        error = OSError(errno.EDQUOT, "")
        error.add_note("A checkpoint takes about 3 MB.")
        raise error
    message = str(caught.value)
    assert re.match(
        r"/runs/a cannot be written: Disk quota exceeded \(.* free\)\. A checkpoint takes about 3 MB\. Checkpoint 6",
        message,
    )


def test_what_is_not_lost_is_added_to_existing_user_errors() -> None:
    """Only for write errors: the message about a file that cannot be read is unchanged."""

    def fail(number: int) -> None:
        with disk.reporting_disk_errors(lambda: "Checkpoint 6 is whole.", pathlib.Path("/runs/a")):
            raise UserError("Weights cannot be written.") from OSError(number, os.strerror(number))

    with pytest.raises(disk.DiskError, match=r"^Weights cannot be written\. Checkpoint 6 is whole\.$"):
        fail(errno.ENOSPC)
    with pytest.raises(UserError, match=r"^Weights cannot be written\.$"):
        fail(errno.EACCES)


@pytest.mark.parametrize(
    ("error", "fix"),
    [(PermissionError(13, "no"), "Change its permissions."), (OSError(5, "no"), "Download or convert it again.")],
)
def test_weights_without_read_permission_are_not_called_damaged(
    error: OSError, fix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(UserError) as caught:
        tensor_types.map_file(tmp_path / "file")
    assert str(caught.value).endswith(f"no. {fix}")


def test_a_refused_plan_names_the_free_space(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "open", lambda *_: open(FULL, "wb"), raising=False)
    with pytest.raises(
        UserError, match=r"--json=.*plan\.json cannot be written: No space left on device \(.* are free\)"
    ):
        plan.write(tmp_path / "plan.json", {})


def test_a_file_is_complete_or_unchanged(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    disk.write_atomically(path, "before")
    monkeypatch.setattr(disk, "open", lambda *_: open(FULL, "wb"), raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        disk.write_atomically(path, "after")
    assert caught.value.filename == str(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(disk.DiskError, match=r"plan\.json is a named pipe.*Choose another path"):
        disk.write_atomically(tmp_path / "plan.json", "{}")
    assert (tmp_path / "plan.json").is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5.4e9, "5.4 GB"),
        (2e15, "2,000 TB"),
    ],
)
def test_sizes(number: float, words: str) -> None:
    assert disk.format_size(number) == words


def test_free_space_for_a_path_that_does_not_exist_yet(tmp_path: pathlib.Path) -> None:
    assert re.fullmatch(r"[\d.,]+ \w+ of [\d.,]+ \w+ are free", disk.free_space(tmp_path / "a" / "b"))


def test_errors_of_shutil_have_their_number_only_in_the_text(tmp_path: pathlib.Path) -> None:
    error = shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")])  # as copytree raises it
    assert disk.describe_os_error(error, tmp_path).startswith("No space left on device (")


def test_a_folder_appears_complete_or_not_at_all(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "made" / "folder"
    with pytest.raises(ZeroDivisionError), disk.atomic_folder(target) as temporary:
        (temporary / "half").touch()
        1 / 0  # noqa: B018
    assert list(target.parent.iterdir()) == []
    for content in ("first", "second"):  # the second process finds the first one's, which stays
        with disk.atomic_folder(target) as temporary:
            assert not (temporary / "file").exists()
            (temporary / "file").write_text(content)
    assert [path.name for path in target.parent.iterdir()] == ["folder"] and (target / "file").read_text() == "first"
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The name of each file that is synced, and its bytes at that time."""
    found: list[tuple[str, int]] = []

    def record(number: int) -> None:
        found.append((pathlib.Path(os.readlink(f"/proc/self/fd/{number}")).name, os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", record)
    return found


def test_what_must_survive_a_power_failure_is_synced_before_it_is_renamed(
    synced: list[tuple[str, int]], tmp_path: pathlib.Path
) -> None:
    with disk.atomic_file(tmp_path / "a") as file:
        file.write(b"12345")
    with disk.atomic_file(tmp_path / "b", keep=False) as file:
        file.write(b"12345")
    disk.write_atomically(tmp_path / "c", "12345")
    ((name, size),) = synced
    assert name.startswith(".a.") and name.endswith(".tmp") and size == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_each_file_of_weights_is_synced_whole(synced: list[tuple[str, int]], tmp_path: pathlib.Path) -> None:
    tensors = [(name, (2,), np.dtype("f4"), lambda: np.zeros(2, "f4")) for name in "ab"]
    paths = write_tensors(tmp_path, tensors, max_shard_bytes=8)
    assert len(paths) == 3 and synced == [(f".{path.name}.tmp", path.stat().st_size) for path in paths]


def test_each_file_of_a_store_is_synced_whole(synced: list[tuple[str, int]], tmp_path: pathlib.Path) -> None:
    write_store(tmp_path / "store", [[[1, 2]]], "abc", 100)
    files = {path.name: path.stat().st_size for path in (tmp_path / "store").iterdir()}
    assert dict(synced) == files and len(synced) == len(files)


@pytest.mark.parametrize(
    ("inodes", "left", "words"),
    [(10, 3, "400 kB of 1 MB are free"), (10, 0, "no free inodes, though 400 kB are free"), (0, 0, "400 kB of 1 MB")],
)
def test_a_file_system_without_inodes_is_full(
    inodes: int, left: int, words: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that counts no inodes, such as Btrfs, has 0 of them."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1_000_000, 600_000, 400_000))
    monkeypatch.setattr(os, "statvfs", lambda place: types.SimpleNamespace(f_files=inodes, f_favail=left))
    assert words in disk.free_space(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "statvfs", lambda place: os.stat("/no/such/place"))
    assert disk.free_space(tmp_path) == "the free space is unknown"


@pytest.mark.parametrize(
    ("number", "limits", "words"),
    [
        (errno.EFBIG, (5_000_000, -1), "File too large (the limit of this process is 5 MB, `ulimit -f`)"),
        (errno.EMFILE, (256, -1), "Too many open files (the limit of this process is 256 at once, `ulimit -n`)"),
        (errno.EMFILE, (resource.RLIM_INFINITY, -1), "Too many open files"),
        (errno.EIO, (256, -1), "Input/output error"),
    ],
)
def test_limits_of_a_process_are_named(
    number: int, limits: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    assert disk.describe_os_error(OSError(number, os.strerror(number)), "/a") == words


def test_the_cause_of_an_error_decides_but_not_a_missing_file_that_was_being_handled() -> None:
    full, missing = OSError(errno.ENOSPC, "full"), OSError(errno.ENOENT, "missing")
    outer = ValueError("no number")
    outer.__context__ = missing
    assert disk.errno_of(missing) == errno.ENOENT and disk.errno_of(outer) is None
    outer.__cause__ = full
    assert disk.errno_of(outer) == errno.ENOSPC
    full.__context__ = outer  # a circle ends
    assert disk.errno_of(outer) == errno.ENOSPC and disk.errno_of(None) is None
