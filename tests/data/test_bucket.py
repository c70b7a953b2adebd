"""Corpora in a bucket: built once, stored complete, fetched by later machines, and opened from a copy."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from lm_research.config import Config, resolve
from lm_research.data import remote_cache
from lm_research.data.corpus import open_corpus
from lm_research.errors import DataError

OUTSIDE = ["../../escaped", "/tmp/escaped", "train/../../escaped", "", "a/..", "..\\escaped", "a\0b"]


class Buckets(DirFileSystem):
    """Stand-in for Google's client: gs://BUCKET/PATH is BUCKET/PATH in a folder. The client itself is not tested."""

    def _join(self, path: str) -> str:
        return super()._join(path.removeprefix("gs://"))


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, list[str]]]:
    """A function from the name of a machine to (digest of the corpus it opens, its log)."""
    monkeypatch.setattr(
        backend.fsspec_backend, "_get_filesystem", lambda name: Buckets(str(tmp_path / "cloud"), LocalFileSystem())
    )
    (tmp_path / "cloud" / "bucket").mkdir(parents=True)
    text = "\n\n".join(f"The house number {n} stands here.\nThe river runs by {n % 7} of them." for n in range(60))
    (tmp_path / "text.txt").write_text(text)

    def open_on(machine: str) -> tuple[str, list[str]]:
        monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / machine))
        said: list[str] = []
        return open_corpus(config(tmp_path), tmp_path / "run", said.append).digest, said

    return open_on


def config(folder: pathlib.Path) -> Config:
    data = {"source": str(folder / "text.txt"), "cache_dir": "gs://bucket/corpora/"}
    return resolve({"data": data, "tokenizer": {"vocab_size": 290}})


def test_one_machine_builds_and_another_fetches(run: Callable, tmp_path: pathlib.Path) -> None:
    first, said = run("a")
    assert "Corpus built" in said[-1]
    second, said = run("b")
    assert second == first and len(said) == 1 and "Corpus found" in said[0]
    (corpus,) = (tmp_path / "cloud/bucket/corpora").iterdir()
    copied = {path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file()}
    here = tmp_path / "b/gs/bucket/corpora" / corpus.name
    assert copied == {remote_cache.LIST} | {
        path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()
    }


def test_an_incomplete_copy_is_made_again(run: Callable, tmp_path: pathlib.Path) -> None:
    digest, _ = run("a")
    (corpus,) = (tmp_path / "cloud/bucket/corpora").iterdir()
    (corpus / remote_cache.LIST).unlink()  # written last: the machine was killed before
    again, said = run("b")
    assert again == digest and "Corpus built" in said[-1] and (corpus / remote_cache.LIST).is_file()


def test_a_shortened_file_is_named(run: Callable, tmp_path: pathlib.Path) -> None:
    run("a")
    (tokens,) = (tmp_path / "cloud/bucket/corpora").glob("*/train/tokens*")
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"train/{tokens.name} has .* bytes instead of"):
        run("b")
    assert not list((tmp_path / "b").rglob("tokens*"))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        *((json.dumps({"a": 1, name: 1}), "which is outside of the corpus") for name in OUTSIDE),
        ('{"a": 1,\n "b"', "is not JSON: .*line 2"),
        ("[1]", r"is \[1\]: expected object"),
        ('{"a": -1}', "is .* >= 0"),
    ],
)
def test_a_list_of_files_is_checked_before_any_is_copied(
    listed: str, message: str, run: Callable, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / "here"))
    corpus = tmp_path / "cloud/bucket/corpus"
    corpus.mkdir()
    (corpus / "a").write_text("1")
    (corpus / remote_cache.LIST).write_text(listed)
    with pytest.raises(DataError, match=f"gs://bucket/corpus/{remote_cache.LIST} .*{message}"):
        remote_cache.local_folder("gs://bucket/corpus")
    assert not (tmp_path / "here").exists()


def test_a_store_can_be_inspected_by_its_address(run: Callable, tmp_path: pathlib.Path) -> None:
    run("a")
    (corpus,) = (tmp_path / "cloud/bucket/corpora").iterdir()
    shutil.rmtree(tmp_path / "a")
    folder = remote_cache.local_folder(f"gs://bucket/corpora/{corpus.name}")
    assert (folder / "train").is_dir()
    with pytest.raises(DataError, match="is not a complete corpus"):
        remote_cache.local_folder("gs://bucket/corpora/other")


def test_without_the_client(tmp_path: pathlib.Path) -> None:
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("it is installed")
    with pytest.raises(DataError, match="needs the package gcsfs.*pip install gcsfs"):
        open_corpus(config_of(tmp_path), tmp_path, lambda line: None)


def config_of(folder: pathlib.Path) -> Config:
    (folder / "text.txt").write_text("A text.\n\nAnother.")
    return config(folder)
