"""What works at s3:// addresses, against moto's server: pip install s3fs 'moto[s3]' flask flask-cors."""

from __future__ import annotations

import json
import pathlib
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from helpers import s3_server
from helpers.train_helpers import SAVE, SLOW_FEED, STEPS, Lab, finish, kill_when, same
from lm_research import compare, convert, from_pretrained, predict, report
from lm_research.common import buckets
from lm_research.common.bucket_copies import BucketCopy, fetched, names
from lm_research.common.paths import as_path
from lm_research.config.run_files import checkpoint_steps
from lm_research.errors import CheckpointError
from lm_research.run import run_directory
from lm_research.trees import flatten

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
RUN = "s3://bucket/runs/a"
SLOW_COPIES = """
import time
from lm_research.common import buckets
write = buckets.write
buckets.write = lambda path, content: (time.sleep(0.3 * ("/checkpoints/" in str(path))), write(path, content))[1]
"""


@pytest.fixture
def _bucket() -> Iterator[s3_server.S3Server]:
    """A server with an empty bucket, which this process and those that it starts use; it refuses some requests."""
    with s3_server.served_here(share=0.02, latency=0.01) as server:
        yield server
    assert not pathlib.Path("s3:").exists()


def test_objects_copies_and_leases(_bucket: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_RESEARCH_LEASE_SECONDS", "1.2")
    _bucket.faults.share = 0.0
    place, run = as_path("s3://bucket/x.json"), as_path("s3://bucket/run")
    _bucket.conflicts = 2
    assert [buckets.create(place, content) for content in (b"1", b"2", b"1")] == [True, False, True]
    assert buckets.read(place) == place.read_bytes() == b"1"
    for text in ("one\n", "two\n"):
        with BucketCopy(run) as copy, (copy.folder / "metrics.jsonl").open("a") as file:
            file.write(text)
    assert names(run) == ["metrics.jsonl"]
    assert (fetched(run) / "metrics.jsonl").read_text() == "one\ntwo\n"
    aside = run / "damaged" / "a"
    aside.parent.mkdir(exist_ok=True)
    buckets.move(run / "metrics.jsonl", aside)
    assert names(run) == ["damaged/a"]
    with run_directory.lock(run):
        time.sleep(0.5)  # it is renewed
        with pytest.raises(CheckpointError, match="s3://bucket/run is in use by another running process"):
            run_directory.lock(run)
    run_directory.lock(run).close()
    with pytest.raises(CheckpointError, match="s3://none/run cannot be written: no such bucket"):
        run_directory.lock(as_path("s3://none/run"))


def machine(folder: pathlib.Path) -> dict[str, str]:
    """The variables of a machine that has nothing yet."""
    folder.mkdir()
    return {"TMPDIR": str(folder), "LM_RESEARCH_CACHE": str(folder / "cache")}


def complete() -> list[int]:
    return checkpoint_steps(as_path(RUN) / "checkpoints")


@pytest.mark.slow
def test_a_run_is_stopped_by_a_signal_and_continues_on_another_machine(
    _bucket: s3_server.S3Server, lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    keys = ["--config.data.cache_dir=none"]  # so that the corpus is in the bucket too
    first = lab.start(RUN, *keys, before=SLOW_FEED + SLOW_COPIES, **machine(tmp_path / "1"))
    kill_when(first, complete, signal.SIGTERM)
    code, output = finish(first)
    assert code == 75 and "everything is saved" in output, output
    stopped = json.loads(buckets.read(as_path(RUN) / "summary.json"))["step"]
    assert SAVE <= stopped < STEPS and complete()[-1] == stopped
    assert not list((tmp_path / "1").glob("lm_research-*"))
    code, output = finish(lab.start(RUN, *keys, **machine(tmp_path / "2")))
    assert code == 0 and f"resuming after step {stopped}" in output and "WARNING: " not in output, output
    run = fetched(as_path(RUN))
    assert same(bert_run, run)
    assert "lm_research-" not in (run / "log.txt").read_text()
    commands_take(RUN, run, tmp_path)


def commands_take(address: str, run: pathlib.Path, folder: pathlib.Path) -> None:
    """Commands give the same for the run in the bucket and for its copy on a disk."""

    def weights(place: str | pathlib.Path) -> dict[str, np.ndarray]:
        return {name: np.asarray(x) for name, x in flatten(from_pretrained(place).params).items()}

    expected = weights(run)
    assert compare.main([address, str(run), "--assert-equal"]) == 0
    assert report.main([address, f"--output={folder}/report.html"]) == 0
    assert convert.main([f"--source={address}/checkpoints/{STEPS}", "--output=s3://bucket/hf", "--to=hf"]) == 0
    for place in (address, f"{address}/checkpoints/{STEPS}", "s3://bucket/hf"):
        found = weights(place)
        assert {name: np.array_equal(x, found[name]) for name, x in expected.items()} == dict.fromkeys(found, True)
    texts, answers = folder / "texts.txt", ["s3://bucket/answers.jsonl", str(folder / "answers.jsonl")]
    texts.write_text("king [MASK] house\n")
    for model, answer in zip((address, str(run)), answers, strict=True):
        given = [f"--model={model}", "--task=fill-mask", f"--input={texts}", f"--output={answer}"]
        assert predict.main(given) == 0
    assert buckets.read(as_path(answers[0])) == pathlib.Path(answers[1]).read_bytes() != b""


@pytest.mark.slow
def test_a_run_that_is_killed_during_a_copy_continues_on_another_machine(
    _bucket: s3_server.S3Server, lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def copying() -> bool:
        """Whether the second or a later checkpoint is there in part."""
        found = {name.partition("/")[0] for name in names(as_path(RUN) / "checkpoints")}
        return bool(done := complete()) and any(int(step) > done[-1] for step in found)

    first = lab.start(RUN, before=SLOW_FEED + SLOW_COPIES, **machine(tmp_path / "1"))
    kill_when(first, copying, signal.SIGKILL)
    finish(first)
    assert copying()
    code, output = finish(lab.start(RUN, **machine(tmp_path / "2")))
    assert code == 0 and f"resuming after step {SAVE}" in output and "WARNING: " not in output, output
    assert same(bert_run, fetched(as_path(RUN)))
