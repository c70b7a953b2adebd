"""`python -m experiments.finetune.make_pairs FOLDER --homeassistant=WHEEL`: English and German texts of a user interface.

Reads the translations of Home Assistant (Apache-2.0; `pip download --no-deps homeassistant==2024.3.3`). Each English text is kept once, with
its first translation; those with fewer than three words are left out. Every twentieth goes to dev, every twentieth to test, the
rest to train: FOLDER/{train,dev,test}.{en,de}, one text per line.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) for every text in nested objects."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}/{name}")
        elif isinstance(value, str):
            yield f"{path}/{name}", " ".join(value.split())


def pairs(wheel: pathlib.Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("/translations/en.json"))
        for name in names:
            german = name.replace("/en.json", "/de.json")
            if german not in archive.namelist():
                continue
            sides = [dict(leaves(json.loads(archive.read(each)))) for each in (name, german)]
            for path, text in sides[0].items():
                if len(text.split()) > 2 and sides[1].get(path, text) != text:
                    found.setdefault(text, sides[1][path])
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune.make_pairs", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--homeassistant", type=pathlib.Path, required=True, help="the wheel")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = list(pairs(options.homeassistant).items())
    random.Random(0).shuffle(rows)
    parts = {"dev": rows[::20], "test": rows[1::20], "train": [row for n, row in enumerate(rows) if n % 20 > 1]}
    for part, given in parts.items():
        for side, language in enumerate(("en", "de")):
            (options.folder / f"{part}.{language}").write_text(
                "".join(row[side] + "\n" for row in given), encoding="utf-8"
            )
        print(f"{part}: {len(given):,} pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
