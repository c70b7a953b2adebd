"""Apache Beam: the same corpus as worker processes make, and errors. Most of it needs the extra `beam`."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import pytest

from lm_research.config import Config, resolve
from lm_research.data.beam import Beam
from lm_research.data.corpus import Corpus, open_corpus
from lm_research.data.workers import Processes
from lm_research.errors import ConfigError, DataError

TEXTS = [f"Story {n}. The cat number {n} met dog {n * 7}.\nThey ran {n % 5} miles. Then they slept." for n in range(60)]
HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason="needs apache-beam")


def make_config(folder: pathlib.Path, **data: Any) -> Config:
    (folder / "text").mkdir(exist_ok=True)
    for number in range(6):
        texts = [*TEXTS[number * 10 : number * 10 + 10], TEXTS[0]]
        (folder / "text" / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    base = {"source": str(folder / "text"), "validation_fraction": 0.2, **data}
    clean = {"near_duplicates": 0.8, "redact_pii": "all", "unicode": "NFC"}
    return resolve({"data": base, "clean": clean, "tokenizer": {"vocab_size": 330}})


def content(corpus: Corpus) -> dict[str, bytes]:
    folder = corpus.train.path.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@needs_beam
def test_the_same_corpus_as_worker_processes_make(tmp_path: pathlib.Path) -> None:
    config = make_config(tmp_path)
    here = open_corpus(config, tmp_path / "here", print, Processes())
    there = open_corpus(config, tmp_path / "beam", print, Beam("DirectRunner", ["--direct_num_workers=1"]))
    assert content(there) == content(here)


@needs_beam
def test_a_damaged_file_is_named(tmp_path: pathlib.Path) -> None:
    config = make_config(tmp_path)
    with open(tmp_path / "text" / "3.jsonl", "a") as file:
        file.write("{")
    with pytest.raises(DataError, match="3.jsonl, line 12 is not JSON"):
        open_corpus(config, tmp_path / "run", print, Beam("DirectRunner", []))


@needs_beam
def test_unknown_runner() -> None:
    with pytest.raises(ConfigError, match="--runner=DirektRunner is not a Beam runner. Did you mean 'DirectRunner'"):
        Beam("DirektRunner", [])


@pytest.mark.skipif(HAS_BEAM, reason="Beam is installed")
def test_beam_is_an_extra() -> None:
    with pytest.raises(ConfigError, match=r"--runner needs Apache Beam.*\[beam\]"):
        Beam("DirectRunner", [])
