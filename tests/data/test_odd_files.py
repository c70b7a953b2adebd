"""Corpora that contain special files, links, decompression bombs, or endless lines: reported by name at once, without blocking."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import pathlib
import socket
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lm_research.config import DataConfig, resolve
from lm_research.data.sources import files, fingerprint, read_documents, records, text
from lm_research.data.sources.files import find_files
from lm_research.data.sources.problems import Problems
from lm_research.errors import DataError
from lm_research.tasks.records import read_records


def read(source: object, problems: Problems | None = None, **keys: Any) -> list[str]:
    return list(read_documents(str(source), DataConfig(**keys), problems))


def names(source: object) -> list[str]:
    return [file.name for file in find_files(str(source))]


def make_pipe(path: pathlib.Path) -> None:
    os.mkfifo(path)


def make_socket(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # such names are short


ODD = {
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link that leads back to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv.gz", "parquet", "array_record"])
@pytest.mark.parametrize("what", ODD)
def test_what_is_not_a_file_is_named(
    what: str, ending: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / f"odd.{ending}"
    ODD[what](odd)
    for source in (odd, tmp_path, tmp_path / "*d.*", tmp_path / "**"):
        assert fingerprint(str(source), DataConfig()) == fingerprint(str(source), DataConfig())
        with pytest.raises(DataError, match=f"odd.{ending} .*{what}"):
            read(source)
        if ending != "array_record" and ending != "txt":
            with pytest.raises(DataError, match=f"odd.{ending} .*{what}"):
                list(read_records(str(source), resolve({})))


def test_it_can_be_left_out_like_a_damaged_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    os.mkfifo(tmp_path / "b.txt")
    problems = Problems("skip")
    assert read(tmp_path, problems) == ["words"] and problems.count == 1 and "b.txt" in problems.first[0]
    os.mkfifo(tmp_path / "notes")  # not of a kind that is searched for
    (tmp_path / "b.txt").unlink()
    assert read(tmp_path) == ["words"]


def test_links_to_folders_are_followed_once(tmp_path: pathlib.Path) -> None:
    """Ten folders that each link to all, and to the folder above: 10! paths lead through them."""
    for number in range(10):
        folder = tmp_path / "data" / f"part{number}"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("words")
    for number, other in itertools.product(range(10), range(10)):
        (tmp_path / "data" / f"part{number}" / f"to{other}").symlink_to(f"../part{other}")
        (tmp_path / "data" / f"part{number}" / "up").exists() or (
            tmp_path / "data" / f"part{number}" / "up"
        ).symlink_to("..")
    expected = [f"part{number}/a.txt" for number in range(10)]
    assert (
        names(tmp_path / "data")
        == names(tmp_path / "data/**/*.txt")
        == names(tmp_path / "data/**/**/a.txt")
        == expected
    )
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(tmp_path / "data" / "part3")
    (tmp_path / "linked" / "there2").symlink_to(tmp_path / "data" / "part3")
    assert names(tmp_path / "linked")[0] == "there/a.txt" and len(names(tmp_path / "linked")) == 10
    assert names(tmp_path / "linked" / "*" / "*.txt") == ["there/a.txt", "there2/a.txt"]


def test_patterns_match_as_in_glob(tmp_path: pathlib.Path) -> None:
    """What glob.glob(pattern, recursive=True) gives, folders left out."""
    import glob

    for name in ("a.txt", "b/a.txt", "b/c/d.txt", ".h/e.txt", "b/.f.txt", "b/[x].txt", "b/c/a.TXT", "bb/c/q.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("words")
    for pattern in (
        "*.txt",
        "**/*.txt",
        "**",
        "b/*",
        "*/c/*.txt",
        "*/*",
        ".h/*",
        "**/.f.txt",
        "b/[[]x].txt",
        "b/**/d.txt",
        "[ab]*/*/?.txt",
        "**/c/**",
        "b*/c/../*.txt",
    ):
        expected = {
            str(pathlib.Path(name))
            for name in glob.glob(str(tmp_path / pattern), recursive=True)
            if os.path.isfile(name)
        }
        assert {str(file.path) for file in find_files(str(tmp_path / pattern))} == expected, pattern
        assert expected


def test_a_folder_that_may_not_be_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a folder without permissions is simulated: the test may run as root."""
    (tmp_path / "a.txt").write_text("words")
    for name in ("closed", "lost+found"):
        (tmp_path / name).mkdir()
    scan = os.scandir

    def refuse(folder: Any = ".") -> Any:
        if os.path.basename(folder) in ("closed", "lost+found"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for source in (tmp_path, tmp_path / "**/*.txt"):
        with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
            read(source)
    (tmp_path / "closed").rmdir()
    assert read(tmp_path) == ["words"]


@pytest.mark.parametrize(
    "name",
    ["a\0.txt", "n" * 256, "ä" * 128 + "*", "x/" * 2100, "\udce9.txt", "~no_such_user_here/a.txt", "tar:" + "n" * 300],
)
def test_names_that_no_file_can_have(name: str) -> None:
    for attempt in (
        read,
        lambda source: list(read_records(source, resolve({}))),
        lambda source: fingerprint(source, DataConfig()),
    ):
        with pytest.raises(DataError) as error:
            attempt(name)
        str(error.value).encode()


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("txt", "gz"), ("txt", "xz"), ("txt", "bz2"), ("jsonl", "gz"), ("csv", "gz"), ("array_record", "gz")],
)
def test_files_that_unpack_to_far_more_are_refused(
    kind: str, ending: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 1 MiB replaces the real one of 256: 4 MiB of a letter pack into a few KB of gzip, and fewer of the others."""
    monkeypatch.setattr(files, "_SMALL", 2**20)
    monkeypatch.setattr(text, "LONGEST_LINE", 2**30)
    path = tmp_path / f"a.{kind}.{ending}"
    path.write_bytes(PACK[ending](b"a" * 2**22))
    with pytest.raises(DataError, match=rf"a.{kind}.{ending} .*it unpacks to more than 100 times its size"):
        read(path)
    path.write_bytes(PACK[ending]((os.urandom(2**14).hex() + "\n").encode() * 64))  # over a MiB; 32 KB of it at random
    if kind == "txt" and ending == "gz":
        assert len(read(path)[0]) == 64 * (2**15 + 1) - 1


@pytest.mark.parametrize("ending", ["", *PACK])
def test_lines_that_are_too_long(ending: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE", 100)
    content = b"\n".join([b'"' + b"a" * 97 + b'"', b'"' + b"b" * 1000 + b'"', b'"c"', b"\xff"])
    path = tmp_path / f"a.jsonl.{ending}".removesuffix(".")
    path.write_bytes(PACK.get(ending, bytes)(content))
    with pytest.raises(DataError, match=r"a\.jsonl.*, line 2 has more than 0 MiB"):
        read(path)
    problems = Problems("skip")
    assert read(path, problems) == ["a" * 97, "c"]
    assert problems.count == 2 and "line 4, byte offset 1107" in problems.first[1]  # 100 + 1003 + 4 bytes precede it


def test_an_endless_line_of_zeros(tmp_path: pathlib.Path) -> None:
    """A file with a hole of 8 GiB takes no space on a disk; all of it is one line."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match="line 1 has more than 128 MiB"):
        read(tmp_path / "a.txt")


def test_a_quote_that_is_never_closed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LONGEST_CELL", 1000)
    (tmp_path / "a.csv").write_text('text\nfine\n"' + "line\n" * 1000)
    with pytest.raises(DataError, match=r"a.csv, line 3 is not a row of a table \(field larger than field limit"):
        read(tmp_path / "a.csv")


def test_a_column_that_unpacks_to_far_more(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SMALL", 2**20)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 2**21]}), path, compression="zstd", use_dictionary=False)
    for attempt in (read, lambda source: list(read_records(source, resolve({})))):
        with pytest.raises(DataError, match="a.parquet .*a row group unpacks to"):
            attempt(str(path))


def test_halves_of_characters_are_counted(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [r'{"text": "a"}', r'{"text": "b\ud800"}', r'{"text": "\ud83d\ude00"}', r'{"text": "c\udfff\udfff"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    problems = Problems()
    assert read(tmp_path / "a.jsonl", problems) == ["a", "b?", "\U0001f600", "c??"]
    assert problems.count == 0 and problems.num_fixed == 2
    assert "question marks in 2 records, first in " in problems.report("x") and "a.jsonl, line 2" in problems.report(
        "x"
    )
    assert [one.fields["text"] for one in read_records(str(tmp_path / "a.jsonl"), resolve({}))] == [
        "a",
        "b?",
        "\U0001f600",
        "c??",
    ]
    said = capsys.readouterr().err
    assert "question marks in 2 records" in said and "line 2" in said
    (tmp_path / "b.json").write_text(json.dumps([{"text": "\ud800"}]))
    assert [one.fields["text"] for one in read_records(str(tmp_path / "b.json"), resolve({}))] == ["?"]
    assert "b.json" in capsys.readouterr().err
