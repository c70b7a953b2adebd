"""Lines end at a line feed or a carriage return and a line feed, and nowhere else, in every reader.

The expected lines are those that the files are joined from. A line is that of RFC 7464 and POSIX; Windows' line end is accepted too.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import pathlib
from collections.abc import Callable

import pytest

from lm_research import generate, predict
from lm_research.common.lines import split_lines
from lm_research.config import DataConfig, resolve
from lm_research.data.sources import read_documents
from lm_research.errors import DataError
from lm_research.tasks.records import read_records
from lm_research.tokenizers.loading import tokenizer_from_files

# Characters at which Python's str.splitlines and its text files (a lone carriage return) also end lines.
ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\r", "\u2028\r\x0b"]
ENDS = ["\n", "\r\n"]


def texts_of(odd: str) -> list[str]:
    return [f"a{odd}b", "plain", f"{odd}c", f"d{odd}d"]


def as_lines(path: pathlib.Path, lines: list[str], end: str) -> str:
    path.write_bytes(end.join(lines).encode())
    return str(path)


def documents(path: pathlib.Path, odd: str, end: str) -> list[str]:
    return list(read_documents(as_lines(path, texts_of(odd), end), DataConfig(document_separator="line")))


def packed(path: pathlib.Path, odd: str, end: str) -> list[str]:
    path = path.with_suffix(".txt.gz")
    path.write_bytes(gzip.compress(("\ufeff" + end.join(texts_of(odd))).encode()))
    return list(read_documents(str(path), DataConfig(document_separator="line")))


def paragraphs(path: pathlib.Path, odd: str, end: str) -> list[str]:
    return list(read_documents(as_lines(path, [text + end for text in texts_of(odd)], end), DataConfig()))


def pairs(path: pathlib.Path, odd: str, end: str) -> list[str]:
    texts = texts_of(odd)
    sides = (as_lines(path.with_suffix(side), lines, end) for side, lines in ((".a", texts), (".b", "wxyz")))
    found = [record.fields for record in read_records(f"lines:{','.join(sides)}", resolve({}))]
    assert [one["target"] for one in found] == list("wxyz")
    return [one["source"] for one in found]


def json_lines(path: pathlib.Path, odd: str, end: str) -> list[str]:
    """JSON may contain U+2028 and similar unescaped; control characters are escaped (RFC 8259, section 7)."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts_of(odd)]
    source = as_lines(path.with_suffix(".jsonl"), lines, end)
    assert list(read_documents(source, DataConfig())) == texts_of(odd)
    return [record.fields["text"] for record in read_records(source, resolve({}))]


def comma_separated(path: pathlib.Path, odd: str, end: str) -> list[str]:
    """Without quotes, as written by programs that support only RFC 4180's line breaks."""
    source = as_lines(path.with_suffix(".csv"), ["text,label", *(f"{text},x" for text in texts_of(odd))], end)
    assert list(read_documents(source, DataConfig())) == texts_of(odd)
    return [record.fields["text"] for record in read_records(source, resolve({}))]


def quoted(path: pathlib.Path, odd: str, end: str) -> list[str]:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end).writerows([["label", "text"], *(["x", text] for text in texts_of(odd))])
    path.with_suffix(".csv").write_bytes(file.getvalue().encode())
    return [record.fields["text"] for record in read_records(str(path.with_suffix(".csv")), resolve({}))]


def tab_separated(path: pathlib.Path, odd: str, end: str) -> list[str]:
    source = as_lines(path.with_suffix(".tsv"), ["text\tlabel", *(f"{text}\tx" for text in texts_of(odd))], end)
    assert list(read_documents(source, DataConfig())) == texts_of(odd)
    return [record.fields["text"] for record in read_records(source, resolve({}))]


def prompts(path: pathlib.Path, odd: str, end: str) -> list[str]:
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts_of(odd)]
    assert generate.read_prompts(as_lines(path.with_suffix(".jsonl"), lines, end)) == texts_of(odd)
    return generate.read_prompts(as_lines(path.with_suffix(".txt"), texts_of(odd), end))


def rows(path: pathlib.Path, odd: str, end: str) -> list[str]:
    source = as_lines(path.with_suffix(".txt"), texts_of(odd), end)
    return list(predict.read_rows(argparse.Namespace(input=source, task="text-generation")))


def columns(path: pathlib.Path, odd: str, end: str) -> list[str]:
    source = as_lines(path.with_suffix(".conll"), [*(f"{text}\tO" for text in texts_of(odd)), ""], end)
    (record,) = read_records(source, resolve({}))
    return record.fields["tokens"]


def standard_input(path: pathlib.Path, odd: str, end: str) -> list[str]:
    content = ("\ufeff" + end.join(texts_of(odd))).encode()
    return list(generate.typed(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")))


READERS = [
    documents,
    packed,
    paragraphs,
    pairs,
    json_lines,
    comma_separated,
    quoted,
    tab_separated,
    prompts,
    rows,
    columns,
    standard_input,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_nothing_else_ends_a_line(reader: Callable[..., list[str]], tmp_path: pathlib.Path) -> None:
    for odd in ODD:
        for end in ENDS:
            assert reader(tmp_path / "file", odd, end) == texts_of(odd), (odd, end)


def test_ends_of_files_and_mixed_ends() -> None:
    assert split_lines("") == []
    assert split_lines("a") == split_lines("a\n") == split_lines("a\r\n") == ["a"]
    assert split_lines("a\nb\r\n\n\r\nc\r") == ["a", "b", "", "", "c\r"]
    assert split_lines("a\r\r\n\n") == ["a\r", ""]


def test_a_pair_of_files_with_a_missing_line_is_named(tmp_path: pathlib.Path) -> None:
    sides = [as_lines(tmp_path / name, lines, "\r\n") for name, lines in (("a", ["x\ry", "z"]), ("b", ["x"]))]
    with pytest.raises(DataError, match=r"a, line 2 has no partner: .*b ends after line 1"):
        list(read_records(f"lines:{','.join(sides)}", resolve({})))


@pytest.mark.parametrize("end", ENDS)
def test_vocabularies(end: str) -> None:
    """Ids of BertTokenizer, and merges of GPT2Tokenizer, of transformers 5.24.0 on the same files.

    The first strips white space from the ends of lines, though not the control characters 1C to 1F.
    """
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    odd = ["a\u2028b", "c\x85", "y\x0cz", "w\x1c", "v\x1dq", "d ", "e\u3000", "f\rg", "h\r", "", "i"]
    text = end.join([*names, *odd]) + end
    ids = tokenizer_from_files({"vocab.txt": text.encode()}, "folder").backend.get_vocab()
    known = ["a\u2028b", "c", "y\x0cz", "w\x1c", "v\x1dq", "d", "e", "f\rg", "h", "", "i"]
    assert {token: number for token, number in ids.items() if number > 4} == {x: 5 + i for i, x in enumerate(known)}

    vocab = ["<|endoftext|>", "a", "b", "ab", "\u2028", "a\u2028", "\u3000", "a\u3000", "\x85", "a\x85", "#", "##"]
    merges = ["#version: 0.2", "a b", "a \u2028", "a \u3000", "a \x85", "# #"]
    files = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(vocab)}).encode(),
        "merges.txt": (end.join(merges) + end).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    }
    found = json.loads(tokenizer_from_files(files, "folder").backend.to_str())["model"]["merges"]
    assert found == [["a", "b"], ["a", "\u2028"], ["a", "\u3000"], ["a", "\x85"], ["#", "#"]]
