"""Corpora in a bucket: built once, stored complete, fetched by later machines, and opened from a copy."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from helpers.clouds import served
from lm_research.common import buckets
from lm_research.common.bucket_copies import names
from lm_research.common.paths import as_path
from lm_research.config import Config, resolve
from lm_research.data import remote_cache
from lm_research.data.block_tokens import ADDRESS
from lm_research.data.corpus import open_corpus
from lm_research.errors import DataError, UserError

OUTSIDE = ["../../escaped", "/tmp/escaped", "train/../../escaped", "", "a/..", "..\\escaped", "a\0b"]


@pytest.fixture(params=["gs", "s3"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of corpora in a bucket of a stand-in."""
    with served(request.param):
        yield f"{request.param}://bucket/corpora"


@pytest.fixture
def run(place: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, list[str]]]:
    """A function from the name of a machine to (digest of the corpus it opens, its log)."""
    text = "\n\n".join(f"The house number {n} stands here.\nThe river runs by {n % 7} of them." for n in range(60))
    (tmp_path / "text.txt").write_text(text)

    def open_on(machine: str) -> tuple[str, list[str]]:
        monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / machine))
        said: list[str] = []
        return open_corpus(config(tmp_path, place), tmp_path / "run", said.append).digest, said

    return open_on


def config(folder: pathlib.Path, place: str) -> Config:
    data = {"source": str(folder / "text.txt"), "cache_dir": f"{place}/"}
    return resolve({"data": data, "tokenizer": {"vocab_size": 290}})


def corpus_of(place: str) -> pathlib.Path:
    """The only corpus in the bucket."""
    (key,) = {name.partition("/")[0] for name in names(as_path(place))}
    return as_path(place) / key


def test_one_machine_builds_and_another_fetches(run: Callable, place: str, tmp_path: pathlib.Path) -> None:
    first, said = run("a")
    assert "Corpus built" in said[-1]
    second, said = run("b")
    assert second == first and len(said) == 1 and "Corpus found" in said[0]
    corpus = corpus_of(place)
    here = tmp_path / "b" / place.replace("://", "/") / corpus.name
    assert set(names(corpus)) == {remote_cache.LIST} | {
        path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file() and path.name != ADDRESS
    }


def test_an_incomplete_copy_is_made_again(run: Callable, place: str) -> None:
    digest, _ = run("a")
    corpus = corpus_of(place)
    (corpus / remote_cache.LIST).unlink()  # written last: the machine was killed before
    again, said = run("b")
    assert again == digest and "Corpus built" in said[-1] and remote_cache.LIST in names(corpus)


def test_a_shortened_file_is_named(run: Callable, place: str, tmp_path: pathlib.Path) -> None:
    run("a")
    tokens = corpus_of(place) / "train/tokens.bin"
    buckets.write(tokens, buckets.read(tokens)[:-1])
    with pytest.raises(DataError, match=r"train/tokens.bin has .* bytes instead of"):
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
    listed: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / "here"))
    with served("gs"):
        corpus = as_path("gs://bucket/corpus")
        buckets.write(corpus / "a", b"1")
        buckets.write(corpus / remote_cache.LIST, listed.encode())
        with pytest.raises(DataError, match=f"gs://bucket/corpus/{remote_cache.LIST} .*{message}"):
            remote_cache.local_folder("gs://bucket/corpus")
    assert not (tmp_path / "here").exists()


def test_a_store_can_be_inspected_by_its_address(run: Callable, place: str, tmp_path: pathlib.Path) -> None:
    run("a")
    shutil.rmtree(tmp_path / "a")
    folder = remote_cache.local_folder(str(corpus_of(place)))
    assert (folder / "train").is_dir()
    with pytest.raises(DataError, match="is not a complete corpus"):
        remote_cache.local_folder(f"{place}/other")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_cannot_be_used_is_told_before_a_corpus_is_built(
    scheme: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_RESEARCH_CACHE", str(tmp_path / "here"))
    (tmp_path / "text.txt").write_text("A text.\n\nAnother.")
    with served(scheme) as server:
        message = f"{scheme}://none/corpora.* cannot be used: no such bucket or object. Check the address"
        with pytest.raises(UserError, match=message):
            open_corpus(config(tmp_path, f"{scheme}://none/corpora"), tmp_path / "run", lambda line: None)
        server.denied.update({"bucket", "PUT"})
        message = f"{scheme}://bucket/corpora.* cannot be used: permission denied. Let the account"
        with pytest.raises(UserError, match=message):
            open_corpus(config(tmp_path, f"{scheme}://bucket/corpora"), tmp_path / "run", lambda line: None)


def test_without_the_client(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    (tmp_path / "text.txt").write_text("A text.\n\nAnother.")
    with pytest.raises(UserError, match="gs://bucket/.* needs the package gcsfs.*pip install gcsfs"):
        open_corpus(config(tmp_path, "gs://bucket"), tmp_path, lambda line: None)
