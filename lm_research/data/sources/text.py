"""Plain text files: their lines and documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import IO

from lm_research.common.lines import end_at_line_feed
from lm_research.data.sources.files import DAMAGE, SourceFile
from lm_research.data.sources.problems import Problems

LONGEST_LINE = 2**27  # bytes; readers hold a few copies of a line in memory
_HEAD_BYTES = 8192
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = {
    b"\x1f\x8b": "It is a gzip archive: rename it to end in .gz.",
    b"PK\x03\x04": "It is a zip archive or an office document: unpack it, or save it as plain text.",
    b"%PDF": "It is a PDF: extract its text first.",
    b"\xff\xfe": "It looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`.",
    b"\xfe\xff": "It looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`.",
}


def read_text(file: SourceFile, documents: str, problems: Problems) -> Iterator[str]:
    """Read the documents of one file; `documents` is data.document_separator: "blank_line", "file" or "line"."""
    yield from _split((line for _, line in read_lines(file, problems)), documents)


def read_lines(file: SourceFile, problems: Problems) -> Iterator[tuple[int, str]]:
    """Read (number, line) of a UTF-8 file, from 1, as common/lines.py defines lines. Line ends become line feeds; a byte order mark is skipped.

    Raises:
      DataError: the file is not text, cannot be read, or has a line that is not UTF-8 or too long (see `problems`).
    """
    number = 0
    try:
        with file.open() as stream:
            _check_head(stream, file, problems)
            offset = 0
            for number, raw in enumerate(_raw_lines(stream), 1):
                if len(raw) > LONGEST_LINE:
                    offset += len(raw) + _pass_over(stream, raw, f"{file.path}, line {number}", problems)
                    continue
                line = _decode(
                    raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw, file, number, offset, problems
                )
                offset += len(raw)
                if line is not None:
                    yield number, end_at_line_feed(line)
    except _NotText:
        return
    except DAMAGE as error:
        problems.found(f"{file.path} is damaged after line {number} ({error})", "Copy it again")
    except OSError as error:
        problems.found(
            f"{file.path} cannot be read: {error.strerror or error}", "Use a complete file that you are allowed to read"
        )


def _raw_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Read lines with their ends; a line that is too long is cut one byte after the limit."""
    while raw := stream.readline(LONGEST_LINE + 1):
        yield raw


def _pass_over(stream: IO[bytes], raw: bytes, where: str, problems: Problems) -> int:
    """Skip the rest of a line that is too long; returns its number of bytes."""
    problems.found(
        f"{where} has more than {LONGEST_LINE // 2**20} MiB",
        "Divide it, for example with `fold -s` (text) or `jq -c '.[]'` (a JSON list), and use the result",
    )
    size = 0
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(LONGEST_LINE)
        size += len(raw)
    return size


class _NotText(Exception):
    """The file is not text, which has been reported."""


def _check_head(stream: IO[bytes], file: SourceFile, problems: Problems) -> None:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    for magic, advice in _MAGIC.items():
        if head.startswith(magic):
            problems.found(f"{file.path} is not UTF-8 text", advice.removesuffix("."))
            raise _NotText


def _decode(raw: bytes, file: SourceFile, number: int, offset: int, problems: Problems) -> str | None:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "a binary file" if b"\0" in raw else "not UTF-8 text"
        problems.found(
            f"{file.path} is {kind}: line {number}, byte offset {offset + error.start}, has the byte "
            f"0x{raw[error.start]:02x} ({error.reason})",
            "Convert it, for example with `iconv -f LATIN1 -t UTF-8`",
        )
        return None
    if "\0" in line:
        problems.found(f"{file.path} is a binary file: line {number} has a zero byte", "A corpus is plain UTF-8 text")
        return None
    return line


def _split(lines: Iterator[str], documents: str) -> Iterator[str]:
    if documents == "file":
        yield "".join(lines)
    elif documents == "line":
        yield from (line.removesuffix("\n") for line in lines if line.strip())
    else:
        for blank, block in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(block).removesuffix("\n")
