"""Local folders that are copied to a bucket, against a stand-in for Google Cloud Storage."""

from __future__ import annotations

import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from helpers.gcs_server import served_here
from helpers.train_helpers import ROOT
from lm_research.common import bucket_copies
from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.disk import DiskError
from lm_research.common.paths import as_path
from lm_research.errors import CheckpointError

pytest.importorskip("gcsfs")
RUN = "gs://bucket/runs/a"


def test_files_grow_in_the_bucket_and_a_later_start_continues_them() -> None:
    with served_here(share=0.1, latency=0.01) as server:
        for text in ("one\n", "two\n", "three\n"):
            with BucketCopy(as_path(RUN), also=["logs/process_1.txt"]) as copy:
                (copy.folder / "logs").mkdir(exist_ok=True)
                for name in ("metrics.jsonl", "logs/process_1.txt", "logs/process_2.txt"):
                    with (copy.folder / name).open("a") as file:
                        file.write(text)
                        file.flush()
                    copy.upload()
            assert not copy.folder.exists()
        content = {name: server.objects["bucket", name].data.decode() for name in server.names()}
    assert content == {
        "runs/a/metrics.jsonl": "one\ntwo\nthree\n",
        "runs/a/logs/process_1.txt": "one\ntwo\nthree\n",
        "runs/a/logs/process_2.txt": "three\n",  # of another process, which nobody asked for
    }


def test_only_what_has_changed_is_sent() -> None:
    with served_here() as server, BucketCopy(as_path(RUN)) as copy:
        for name in ("a.json", "b.json", ".a.json.tmp", "x.db-journal"):
            (copy.folder / name).write_text("1")
        copy.upload()
        sent = server.counts["insert"]
        copy.upload()
        assert server.counts["insert"] == sent == 3  # with the one that showed that the bucket can be written
        os.replace(copy.folder / ".a.json.tmp", copy.folder / "a.json")  # same size, and it may have the same time
        copy.upload()
        assert server.counts["insert"] == sent + 1


def test_a_database_is_copied_between_two_transactions() -> None:
    with served_here() as server, BucketCopy(as_path(RUN)) as copy:
        made = sqlite3.connect(copy.folder / "study.db", isolation_level=None)
        made.execute("create table t (x)")
        made.execute("insert into t values (1)")
        copy.upload()
        made.execute("begin")
        made.execute("insert into t values (2)")
        copy.upload()
        found = pathlib.Path(copy.folder / "found.db")
        found.write_bytes(server.objects["bucket", "runs/a/study.db"].data)
        assert sqlite3.connect(found).execute("select x from t").fetchall() == [(1,)]
        made.execute("commit")
        made.close()


def test_what_a_killed_process_wrote_some_seconds_before_is_there() -> None:
    code = f"""
import os, signal, time
from lm_research.common import bucket_copies
from lm_research.common.paths import as_path
bucket_copies.SECONDS = 0.05
copy = bucket_copies.BucketCopy(as_path({RUN!r}))
for number in range(10**6):
    with (copy.folder / "metrics.jsonl").open("a") as file:
        file.write(f"{{number}}\\n")
    print(number, flush=True)
    time.sleep(0.01)
"""
    with served_here() as server:
        settings = os.environ | server.environment | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", code], env=settings, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while server.counts.get("insert", 0) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        lines = server.objects["bucket", "runs/a/metrics.jsonl"].data.decode().splitlines()
        assert len(lines) > 1 and lines == [str(number) for number in range(len(lines))]


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work continues for PATIENCE; then it ends, and the files are kept."""
    monkeypatch.setattr(bucket_copies, "SECONDS", 0.01)
    monkeypatch.setattr(bucket_copies, "PATIENCE", 1e9)
    with served_here() as server:
        copy = BucketCopy(as_path(RUN))
        server.denied.add("bucket")
        (copy.folder / "a.json").write_text("1")
        while copy._failing is None:
            time.sleep(0.01)
        copy.check()
        monkeypatch.setattr(bucket_copies, "PATIENCE", 0.0)
        for end in (copy.check, lambda: copy.close(0)):
            with pytest.raises(
                DiskError, match=rf"{RUN} could not be written for .* permission denied.* are in {copy.folder}"
            ):
                end()
        assert (copy.folder / "a.json").read_text() == "1"
        server.denied.clear()
        copy.close()
        assert server.names() == ["runs/a/a.json"]


def test_messages_name_the_address() -> None:
    with served_here():
        with pytest.raises(CheckpointError, match=f"^see {RUN}/x.json$"), BucketCopy(as_path(RUN)) as copy:
            raise CheckpointError(f"see {copy.folder}/x.json")


def test_a_folder_of_this_machine_is_used_itself(tmp_path: pathlib.Path) -> None:
    with BucketCopy(tmp_path) as copy:
        assert copy.folder == tmp_path
        copy.flush()
        copy.check()
    assert tmp_path.is_dir()
