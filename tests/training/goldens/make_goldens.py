"""Make run_exports.json next to this file: the ids that Hugging Face transformers gives for tokenizers of our runs.

Run in a separate environment with transformers 5.24 (torch is not needed); tests do not need it:

    PYTHONPATH=.:tests python tests/training/goldens/make_goldens.py

For each family with each vocabulary of tests/helpers/run_exports.py the files that a run's model has in addition to its weights are written and
AutoTokenizer reads them. The file holds

    versions   what made it
    plain      vocabulary -> ids of each text without special tokens around it
    shown      family/vocabulary -> ids of one text with them
    digests    family/vocabulary -> SHA-256 of input_ids (and token_type_ids, if it gives any) of all texts and all pairs, padded
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import transformers

import tokenizers
from helpers.run_exports import GOLDENS, PAIRS, SECONDS, TEXTS, digest_of, exported

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    golden = {
        "versions": {
            "maker": "tests/training/goldens/make_goldens.py",
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "plain": {},
        "shown": {},
        "digests": {},
    }
    for family, vocabulary in PAIRS:
        tokenizer, config = exported(family, vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_files(folder)
            (pathlib.Path(folder) / "config.json").write_bytes(config)
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
        golden["plain"].setdefault(vocabulary, theirs(TEXTS, add_special_tokens=False)["input_ids"])
        golden["shown"][f"{family}/{vocabulary}"] = theirs(TEXTS[2])["input_ids"]
        found = [theirs(TEXTS, seconds, padding=True) for seconds in (None, SECONDS)]
        golden["digests"][f"{family}/{vocabulary}"] = digest_of(found)
    GOLDENS.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
