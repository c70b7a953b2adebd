"""A study whose directory is in a bucket, against a stand-in for Google Cloud Storage."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from helpers.gcs_server import Faults, GcsServer

pytest.importorskip("gcsfs")
pytest.importorskip("optuna")
from test_studies import ROOT, write_sweep

PLACE = "gs://bucket/studies/lr"
SPACE = "{'optimizer.learning_rate': Choice(1e-3, 1e-2), 'model.num_layers': Choice(1, 2)}"
# The toy run of the other tests, in a bucket.
TOY = """
import sys
import toy_train
from lm_research.common.bucket_copies import BucketCopy
from lm_research.common.paths import as_path
from lm_research.run.run_directory import lock
(place,) = (word.partition("=")[2] for word in sys.argv if word.startswith("--workdir="))
with lock(as_path(place)), BucketCopy(as_path(place)) as copy:
    code = toy_train.main([word for word in sys.argv[1:] if not word.startswith("--workdir=")] + [f"--workdir={copy.folder}"])
sys.exit(code)
"""


def start(server: GcsServer, sweep: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweeping"), str(sweep.parent)])
    command = [sys.executable, "-m", "experiments.run", f"--sweep={sweep}", f"--workdir={PLACE}", *flags]
    settings = {**os.environ, **server.environment, "PYTHONPATH": paths}
    return subprocess.Popen(
        command, cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_a_study_that_is_killed_and_continued(tmp_path: pathlib.Path) -> None:
    (tmp_path / "toy_bucket_train.py").write_text(TOY)
    sweep = write_sweep(tmp_path, SPACE, steps=600)
    sweep.write_text(sweep.read_text().replace("toy_train", "toy_bucket_train"))
    with GcsServer(faults=Faults(seed=2, share=0.03, latency=0.01)) as server:
        first = start(server, sweep, "--workers=2")
        while not server.names(prefix="studies/lr/trials/0001/metrics.jsonl") and first.poll() is None:
            time.sleep(0.1)
        second = start(server, sweep)  # study.db cannot be shared in a bucket
        output, _ = second.communicate(timeout=300)
        assert second.returncode == 2 and f"error: --workdir={PLACE} is in use by another running process" in output
        first.send_signal(signal.SIGKILL)  # its trials save and end by themselves
        first.communicate()
        third = start(server, sweep, "--workers=2")
        output, _ = third.communicate(timeout=300)
        assert third.returncode == 0 and f"finished: {PLACE}/table.md" in output, output
        table = json.loads(server.objects["bucket", "studies/lr/study.json"].data)
        assert {
            (trial["params"]["optimizer.learning_rate"], trial["params"]["model.num_layers"]): round(trial["value"], 6)
            for trial in table["trials"]
        } == {(1e-3, 1): 0.011667, (1e-3, 2): 0.021667, (1e-2, 1): 1.011667, (1e-2, 2): 1.021667}
        names = [name for name in server.names(prefix="studies/lr/trials/") if name.endswith("starts.txt")]
        starts = [server.objects["bucket", name].data.decode().split() for name in names]
        assert len(starts) == 4 and all(first == "0" for first, *_ in starts)
        assert any(0 < int(step) < 600 for _, *later in starts for step in later), starts
        (tmp_path / "study.db").write_bytes(server.objects["bucket", "studies/lr/study.db"].data)
        states = sqlite3.connect(tmp_path / "study.db").execute("select state from trials").fetchall()
        assert states == [("COMPLETE",)] * 4
        assert server.counts["fault"]
