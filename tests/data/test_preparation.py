"""Building a corpus in shards: the same bytes for any number of workers and after kill -9 anywhere; cleaning; manifests."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from lm_research import config as config_lib
from lm_research.config import Config, resolve
from lm_research.data import corpus as corpus_module
from lm_research.data import ingest as spool_module
from lm_research.data.corpus import Corpus, corpus_folder, open_corpus
from lm_research.data.tokenize_shards import tokenize_shards
from lm_research.data.workers import Processes, WorkerDied
from lm_research.errors import ConfigError, DataError

HERE = pathlib.Path(__file__).parent
TEXTS = [f"Story {n}. The cat number {n} met dog {n * 7}.\nThey ran {n % 5} miles. Then they slept." for n in range(60)]
SHARD = 700  # characters: six shards of the texts above


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SHARD_CHARACTERS", SHARD)


def make_config(folder: pathlib.Path, texts: list[str] = TEXTS, **sections: dict[str, Any]) -> Config:
    path = folder / "corpus.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base = {"data": {"source": str(path), "validation_fraction": 0.2}, "tokenizer": {"vocab_size": 330}}
    return config_lib.replace(resolve(base), **sections)


def build(config: Config, folder: pathlib.Path, workers: int = 1) -> tuple[Corpus, list[str]]:
    lines: list[str] = []
    return open_corpus(config, folder, lines.append, Processes(workers)), lines


def content(corpus: Corpus) -> dict[str, bytes]:
    folder = corpus.train.path.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def texts_of(corpus: Corpus, part: str = "train") -> list[str]:
    stored = getattr(corpus, part)
    return [corpus.tokenizer.decode(stored.document_tokens(i)) for i in range(stored.num_documents)]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "byte_bpe"])
def test_any_number_of_workers_and_any_size_of_shards(
    kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab_size = {"unigram": 330, "wordpiece": 90, "byte_bpe": 280}[kind]
    config = make_config(tmp_path, tokenizer={"type": kind, "vocab_size": vocab_size})
    expected = content(build(config, tmp_path / "one")[0])
    assert {name.split("/")[0] for name in expected} >= {"train", "validation"}
    assert content(build(config, tmp_path / "two", workers=2)[0]) == expected
    monkeypatch.setattr(spool_module, "SHARD_CHARACTERS", 10**6)
    assert content(build(config, tmp_path / "large")[0]) == expected


KILLED = """
import os, pathlib, signal, sys
import test_preparation as t
from lm_research.data import corpus, store, ingest, tokenize_shards
t.spool_module.SHARD_CHARACTERS = t.SHARD
left = {after}
def killing(real):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return wrapped
os.replace = killing(os.replace)  # a shard or the tokenizer becomes visible
os.rename = killing(os.rename)  # a store or the whole corpus does
folder = pathlib.Path({folder!r})
t.build(t.make_config(folder), folder / "run")
"""


@pytest.mark.parametrize(("after", "shards"), [(0, 0), (3, 3), (6, 6), (9, 6), (12, 8), (17, 12), (18, 12)])
def test_killed_anywhere_it_resumes(after: int, shards: int, tmp_path: pathlib.Path) -> None:
    """6 shards and their number are written, the tokenizer (3 times), 6 more shards, two stores, the corpus: 19 in all."""
    config = make_config(tmp_path)
    expected = content(build(config, tmp_path / "undisturbed")[0])
    code = KILLED.format(after=after, folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, timeout=60).returncode == -9
    folder = corpus_folder(config, tmp_path / "run")
    assert not folder.exists()
    finished = {path: path.stat().st_ino for path in folder.parent.rglob("*.npz")}
    assert len(finished) == shards
    seen: dict[pathlib.Path, int] = {}
    real = corpus_module.disk.publish

    def look(temporary: pathlib.Path, path: pathlib.Path) -> bool:
        if path == folder:
            seen.update((shard, shard.stat().st_ino) for shard in finished if shard.exists())
        return real(temporary, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module.disk, "publish", look)
        corpus, lines = build(config, tmp_path / "run")
    assert seen == finished, "finished shards were made again"
    assert content(corpus) == expected
    assert list(folder.parent.iterdir()) == [folder]
    assert ("Trained tokenizer" in " ".join(lines)) == (after < 10)


def test_what_a_dead_worker_leaves_is_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path)

    def dies(*arguments: Any) -> None:
        raise WorkerDied("killed")

    monkeypatch.setattr(corpus_module, "tokenize_shards", dies)
    with pytest.raises(WorkerDied):
        build(config, tmp_path / "run")
    work = corpus_folder(config, tmp_path / "run").parent
    assert len(list(work.rglob("*.npz"))) == 6
    monkeypatch.setattr(corpus_module, "tokenize_shards", tokenize_shards)
    monkeypatch.setattr(spool_module, "_write_shard", lambda task: pytest.fail("text was cleaned again"))
    assert build(config, tmp_path / "run")[0].train.num_documents > 30


def test_two_builders_at_once(tmp_path: pathlib.Path) -> None:
    """One builds, the other waits and finds."""
    config, logs = make_config(tmp_path), ([], [])
    threads = [
        threading.Thread(target=lambda log=log: open_corpus(config, tmp_path / "run", log.append)) for log in logs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [" ".join(log) for log in logs]
    assert sum("Trained tokenizer" in line for line in lines) == 1
    assert all("Corpus" in line for line in lines)


def test_cleaning_reaches_the_store_and_the_manifest(tmp_path: pathlib.Path) -> None:
    near = TEXTS[3] + " " + " ".join(f"Word{n} is here." for n in range(60))
    texts = [
        *TEXTS,
        near,
        near.replace("Word30", "Changed"),
        TEXTS[5],
        "x",
        "",
        "Привет, мир, как дела сегодня",
        "cafe\u0301 " * 8,
    ]
    texts[7] += " Mail cat@example.org or 192.0.2.1."
    clean = dict(unicode="NFC", near_duplicates=0.7, min_characters=5, scripts="latin", redact_pii="email,ip")
    corpus, lines = build(make_config(tmp_path, texts, clean=clean), tmp_path / "run", workers=2)
    stored = texts_of(corpus) + texts_of(corpus, "validation")
    assert len(stored) == 62
    assert [text for text in stored if "Mail" in text] == [" ".join(TEXTS[7].split()) + " Mail [EMAIL] or [IP]."]
    assert sum("Word31" in text for text in stored) == 1 and not any("Changed" in text for text in stored)
    assert any(text.startswith("café café") for text in stored)
    (entry,) = corpus.train.manifest["origin"]
    assert entry["dropped"] == {
        "empty": 1,
        "short": 1,
        "long": 0,
        "script": 1,
        "exact_duplicate": 1,
        "near_duplicate": 1,
    }
    assert entry["scrubbed"] == {"key": 0, "email": 1, "ip": 1, "card": 0, "phone": 0}
    assert entry["documents"] == len(texts) and entry["dropped_characters"] > 0
    (warning,) = [line for line in lines if line.startswith("Warning")]
    for words in ("1 documents that occurred before", "1 empty", "1 near repeats", "1 too short", "1 in other scripts"):
        assert words in warning
    assert corpus.train.manifest["built_with"]["numpy"] == np.__version__


def test_cleaning_settings_determine_the_corpus_folder(tmp_path: pathlib.Path) -> None:
    changes = [
        {},
        {"unicode": "NFC"},
        {"near_duplicates": 0.5},
        {"min_characters": 3},
        {"scripts": "latin"},
        {"redact_pii": "all"},
    ]
    folders = {corpus_folder(make_config(tmp_path, clean=change), tmp_path) for change in changes}
    assert len(folders) == len(changes)
    with pytest.raises(ConfigError, match="clean.redact_pii names 'mails'"):
        build(make_config(tmp_path, clean={"redact_pii": "mails"}), tmp_path / "run")


def test_near_repeats_of_held_out_text_are_removed_from_training(tmp_path: pathlib.Path) -> None:
    long = [" ".join(f"w{n}x{k}" for k in range(60)) for n in range(12)]
    held = tmp_path / "held.txt"
    held.write_text(long[4].replace("w4x30", "other"))
    changes = dict(data={"validation_source": str(held)}, clean={"near_duplicates": 0.7}, tokenizer={"vocab_size": 276})
    config = make_config(tmp_path, long, **changes)
    corpus, _ = build(config, tmp_path / "run")
    assert corpus.train.num_documents == 11 and corpus.validation.num_documents == 1
    assert not any("w4x1 " in text for text in texts_of(corpus))


def test_unreadable_lines_are_skipped_and_counted(tmp_path: pathlib.Path) -> None:
    config = make_config(tmp_path, data={"on_error": "skip"})
    with open(config.data.source, "a") as file:
        file.write("{\n{}\n")
    corpus, lines = build(config, tmp_path / "run")
    assert corpus.train.manifest["origin"][0]["unreadable"] == 2
    assert any("skipped 2 that cannot be read" in line and "line 61 is not JSON" in line for line in lines)
    assert corpus.train.num_documents + corpus.validation.num_documents == 60


class ByFile(Processes):
    """Read each file in a separate task, as runners on many machines do."""

    by_file = True


@pytest.mark.parametrize("workers", [1, 2])
def test_files_read_separately_make_the_same_corpus(workers: int, tmp_path: pathlib.Path) -> None:
    """Of seven files, one empty, one with a line that cannot be read, and documents that repeat in others."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(7):
        texts = [] if number == 3 else [*TEXTS[number * 10 : number * 10 + 10], *TEXTS[:2], ""]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, "{"] if number == 5 else lines))
    config = make_config(tmp_path, data={"source": str(folder), "on_error": "skip"})
    expected = content(build(config, tmp_path / "here")[0])
    lines: list[str] = []
    corpus = open_corpus(config, tmp_path / "apart", lines.append, ByFile(workers))
    assert content(corpus) == expected
    assert any("skipped 1 that cannot be read" in line for line in lines)


def test_files_without_text(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty: it has no text"):
        open_corpus(make_config(tmp_path, data={"source": str(folder)}), tmp_path / "run", print, ByFile())
