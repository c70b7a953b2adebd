"""Files of every kind, packed and in buckets: which are found, their content, and ten kinds of damage."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pathlib
import struct
import time

import pyarrow
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

from helpers.clouds import served
from lm_research.common import buckets
from lm_research.common.paths import as_path
from lm_research.config import DataConfig
from lm_research.data.sources import files, fingerprint, read_documents
from lm_research.data.sources.problems import Problems
from lm_research.errors import DataError

TEXTS = ["One text.", 'Zwei\nZeilen, "quoted".', "三。"]


def read(source: object, **keys: str) -> list[str]:
    return list(read_documents(str(source), DataConfig(**keys)))


def write_json(path: pathlib.Path) -> None:
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)) + "\n")


def write_csv(path: pathlib.Path) -> None:
    path.write_text('id,text\n1,One text.\n2,"Zwei\nZeilen, ""quoted""."\n3,三。\n')


def write_parquet(path: pathlib.Path) -> None:
    parquet.write_table(
        pyarrow.table({"id": [1, 2, 3], "text": TEXTS, "other": ["a", "b", "c"]}), path, row_group_size=2
    )


def write_array_record(path: pathlib.Path) -> None:
    write_records(path, [text.encode() for text in TEXTS])


def write_records(path: pathlib.Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITE = {
    "a.jsonl": write_json,
    "a.ndjson": write_json,
    "a.json": write_json,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "a.array_record": write_array_record,
}


@pytest.mark.parametrize("name", WRITE)
def test_kinds_of_files(name: str, tmp_path: pathlib.Path) -> None:
    WRITE[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS
    (tmp_path / "README").write_text("not of a kind that is known")
    assert read(tmp_path) == TEXTS


def test_a_packed_file_is_closed_with_the_stream_that_unpacks_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text"))
    streams = [packed := path.open("rb"), gzip.open(packed)]
    unpacked = files._Unpacked(streams[1], packed, path.stat().st_size)
    with io.BufferedReader(unpacked) as reader:
        assert reader.read() == b"text"
    assert unpacked.closed and all(stream.closed for stream in streams)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.array_record"])
def test_packed_files(name: str, ending: str, pack: object, tmp_path: pathlib.Path) -> None:
    WRITE[name](tmp_path / name)
    (tmp_path / f"{name}{ending}").write_bytes(pack((tmp_path / name).read_bytes()))
    assert read(tmp_path / f"{name}{ending}") == TEXTS


def test_packed_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeffa\r\nb\r\n\r\nc".encode()))
    assert read(tmp_path / "a.txt.gz") == read(tmp_path) == ["a\nb", "c"]


def test_tsv_keeps_quotes_unchanged(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\n"half quoted\nsay "x"\n')
    assert read(tmp_path / "a.tsv") == ['"half quoted', 'say "x"']


def test_fields_by_name(tmp_path: pathlib.Path) -> None:
    write_csv(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", text_key="id") == ["1", "2", "3"]
    write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_key="other") == ["a", "b", "c"]
    (tmp_path / "b.jsonl").write_text('"a string"\n{"body": "x"}\n')
    assert read(tmp_path / "b.jsonl", text_key="body") == ["a string", "x"]
    (tmp_path / "c.csv").write_text("body\nx\n")
    assert read(tmp_path / "c.csv") == ["x"]  # the only column needs no name
    with pytest.raises(DataError, match="no column 'txt'.*data.text_key.*Did you mean 'text'"):
        read(tmp_path / "a.csv", text_key="txt")
    with pytest.raises(DataError, match="no column of texts 'id'.*Valid: other, text"):
        read(tmp_path / "a.parquet", text_key="id")


def message(field: int, *content: bytes) -> bytes:
    """A length-delimited field of Protocol Buffers; lengths from 128 on take two bytes, the low seven bits first."""
    joined = b"".join(content)
    size = len(joined)
    return bytes([field << 3 | 2, *([size] if size < 128 else [size & 127 | 128, size >> 7])]) + joined


def test_fields_of_examples_in_array_records(tmp_path: pathlib.Path) -> None:
    """tf.train.Example, its bytes put together from the message's definition; with a float list and an integer in addition to the text."""
    text = message(1, message(1, b"text"), message(2, message(1, message(1, "三 x".encode()))))
    number = message(1, message(1, b"n"), message(2, message(3, b"\x08\x96\x01")))  # Int64List, value 150 unpacked
    floats = message(1, message(1, b"f"), message(2, message(2, b"\x0d" + struct.pack("<f", 1.5))))
    records = [message(1, number, text, floats), b'{"text": "as JSON"}']
    write_records(tmp_path / "a.array_record", records)
    assert read(tmp_path / "a.array_record", text_key="text") == ["三 x", "as JSON"]
    # Other fields are skipped: 3, a whole number of -1 in ten bytes, 4 of eight bytes, and 5 of four; then a text of 300 letters.
    others = b"\x18" + b"\xff" * 9 + b"\x01" + b"\x21" + b"\x0a" * 8 + b"\x2d" + b"\x0a" * 4
    long = message(1, message(1, b"text"), message(2, message(1, message(1, b"x" * 300))))
    write_records(tmp_path / "d.array_record", [others + message(1, long)])
    assert read(tmp_path / "d.array_record", text_key="text") == ["x" * 300]
    write_records(tmp_path / "e.array_record", [b"\x18" + b"\xff" * 10 + b"\x01" + message(1, long)])
    with pytest.raises(DataError, match="more than 64 bits"):
        read(tmp_path / "e.array_record", text_key="text")
    write_records(tmp_path / "b.array_record", [records[0]])
    with pytest.raises(DataError, match="record 0 has no feature 'body'; its features: text"):
        read(tmp_path / "b.array_record", text_key="body")
    write_records(tmp_path / "c.array_record", [b"\x0a\x7fshort"])
    with pytest.raises(DataError, match="record 0 is neither JSON nor a tf.train.Example .it ends inside a field"):
        read(tmp_path / "c.array_record", text_key="text")


def test_patterns(tmp_path: pathlib.Path) -> None:
    for name in ("b/x.txt", "a/y.txt", "a/c/z.txt", "a/notes.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(f"{tmp_path}/**/*.txt") == ["a/c/z.txt", "a/y.txt", "b/x.txt"]
    assert read(f"{tmp_path}/*/?.txt") == ["a/y.txt", "b/x.txt"]
    with pytest.raises(
        DataError, match=r"several kinds: 3 with .txt, 1 with .csv.*by a pattern, for example .*\*\*/\*.txt"
    ):
        read(tmp_path)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_buckets(scheme: str) -> None:
    with served(scheme):
        for name, content in {
            "a/x.txt": b"first",
            "a/b/y.txt.gz": gzip.compress(b"second"),
            "c.jsonl": b'"third"\n',
            "ab/z.txt": b"another folder",
        }.items():
            buckets.write(as_path(f"{scheme}://bucket/{name}"), content)
        assert read(f"{scheme}://bucket/a/x.txt") == ["first"]
        assert read(f"{scheme}://bucket/a") == ["second", "first"]
        assert read(f"{scheme}://bucket/*.jsonl") == ["third"]
        assert [file.name for file in files.find_files(f"{scheme}://bucket/a*/**/*.txt*")] == [
            "a/b/y.txt.gz",
            "a/x.txt",
            "ab/z.txt",
        ]
        seen = fingerprint(f"{scheme}://bucket/a", DataConfig())
        time.sleep(1.1)  # listings tell seconds
        buckets.write(as_path(f"{scheme}://bucket/a/x.txt"), b"again")
        assert fingerprint(f"{scheme}://bucket/a", DataConfig()) != seen
        for missing in ("bucket/nothing", "another/x.txt"):
            with pytest.raises(DataError, match=f"'{scheme}://{missing}' does not exist"):
                read(f"{scheme}://{missing}")


def test_bucket_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package gcsfs.*pip install gcsfs"):
        fingerprint("gs://bucket/a", DataConfig())


# name, content, what remains when the damage is skipped, and the message when it is not
DAMAGE = {
    "line that is not UTF-8": (
        "a.txt",
        b"good\n\ncaf\xe9\nmore\n",
        ["good", "more"],
        "a.txt is not UTF-8.*line 3, byte offset 9",
    ),
    "zero byte": ("a.txt", b"good\n\nx\0y\n", ["good"], "line 3 has a zero byte"),
    "truncated gzip": (
        "a.txt.gz",
        gzip.compress(b"good\n\nmore and more\n")[:-12],
        [],
        "a.txt.gz is damaged after line",
    ),
    "not gzip": ("a.txt.gz", b"plain text", [], "a.txt.gz is damaged after line 0"),
    "not JSON": ("a.jsonl", b'{"text": "good"}\n{"text": \n', ["good"], "a.jsonl, line 2 is not JSON"),
    "no field": (
        "a.jsonl",
        b'{"text": "good"}\n{"txt": "x"}\n',
        ["good"],
        "line 2 has no field 'text'; its fields: txt",
    ),
    "field of another type": (
        "a.jsonl",
        b'{"text": 5}\n{"text": "good"}\n',
        ["good"],
        "line 1: field 'text' is of type int",
    ),
    "not an object": ("a.jsonl", b'["x"]\n"good"\n', ["good"], "line 1 has a JSON list"),
    "short row": (
        "a.csv",
        b"a,text\n1,good\n2\n3,fine\n",
        ["good", "fine"],
        "a.csv, line 3 has 1 columns, but the first row has 2",
    ),
    "unclosed quote": ("a.csv", b'a,text\n1,good\n2,"x\n', ["good"], "a.csv, line 3 is not a row"),
    "not Parquet": ("a.parquet", b"PAR1 no", [], "a.parquet is not a Parquet file"),
    "not ArrayRecord": ("a.array_record", b"no", [], "a.array_record is not an ArrayRecord file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(damage: str, tmp_path: pathlib.Path) -> None:
    name, content, left, error = DAMAGE[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{error}.*data.on_error=skip") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    problems = Problems("skip")
    documents = read_documents(str(tmp_path / name), DataConfig(document_separator="line"), problems)
    if left:
        assert list(documents) == left
    else:
        with pytest.raises(DataError, match="is empty.*1 lines or records that cannot be read were skipped"):
            list(documents)
    assert problems.count == 1 and name in problems.first[0]


def test_skipping_is_counted_and_the_first_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text('"good"\n' + "{\n" * 8)
    problems = Problems("skip")
    assert list(read_documents(str(tmp_path / "a.jsonl"), DataConfig(), problems)) == ["good"]
    line = problems.report("corpus")
    assert problems.count == 8 and "skipped 8" in line and "line 6" in line and "and 3 more" in line
    assert "line 7" not in line and Problems().report("corpus") == ""


def test_null_in_parquet(tmp_path: pathlib.Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", on_error="skip") == ["a", "b"]
    with pytest.raises(DataError, match="row 2: 'text' is null"):
        read(tmp_path / "a.parquet")


def test_text_key_is_part_of_the_fingerprint_of_records(tmp_path: pathlib.Path) -> None:
    write_csv(tmp_path / "a.csv")
    prints = {fingerprint(str(tmp_path / "a.csv"), DataConfig(text_key=key)) for key in ("", "id")}
    assert len(prints) == 2
