"""Ten million words like BabyLM's, the minimal pairs of BLiMP and Zorro, and rows that score models of the words on the pairs.

The text is WikiText-2, 53 novels, Switchboard's conversations and speech to children (CHILDES): as many words as the Strict-Small track and
mixed like it, but not its corpus, so that scores are no figures of its leaderboard.
"""

from __future__ import annotations

import collections
import csv
import gzip
import json
import lzma
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterator

from experiments.results.row import COMPUTED, READ, Figure, Row, public
from experiments.results.sets import write
from experiments.results.training import Published, command, figure, train, write_curve

GOALS = {  # accuracy x 100
    "blimp": {
        "GPT-BERT, the best baseline of 2025": Published(71.66, 0.05, READ, at_least=True),
        "GPT-2, the baseline of 2026": Published(65.08, 0.05, READ, at_least=True),
        "the 5-gram of BLiMP's paper": Published(61.24, 0.05, READ, at_least=True),
    },
    "zorro": {"RoBERTa-base": Published(82.49, 0.05, COMPUTED, at_least=True)},
}
SOURCE = (
    "babylm/evaluation-pipeline-2025 at bf55c11: 71.66, GPT-BERT, the best causally scored baseline of Strict-Small; babylm-org/babylm-eval at "
    "45fe2c1: 65.08, GPT-2; alexwarstadt/blimp at 3e56b06: 61.24, a 5-gram; Zorro: RoBERTa-base (exact_zorro)"
)
_PIECE_WORDS = 2_000  # of a novel; shorter documents make a finer held-out part


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """Write the ten million words to `folder`/train.jsonl, one document a line, unless they are there; return the file."""
    if not (folder / "train.jsonl").exists():
        sources = (articles, novels, conversations, speech_to_children)
        write(folder, train=({"text": text} for source in sources for text in source()))
    return folder / "train.jsonl"


def articles() -> Iterator[str]:
    """Yield the articles of WikiText-2, with the spaces around marks removed; its rare words are <unk>."""
    lines = lzma.decompress(public("lm/wikitext2/wiki.train.tokens.xz").read_bytes()).decode().splitlines()
    article: list[str] = []
    for line in map(str.strip, lines):
        if re.fullmatch(r"= [^=].*[^=] =", line) and article:
            yield "\n".join(article)
            article = []
        if line:
            article.append(_plain(line))
    yield "\n".join(article)


def _plain(line: str) -> str:
    """Undo WikiText's tokens: "role @-@ playing , 1 @,@ 000" is "role-playing, 1,000"."""
    line = re.sub(r" @([-,.])@ ", r"\1", line).strip("= ")
    line = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)", r"\1", line)
    return re.sub(r"([(\[$]) ", r"\1", line)


def novels() -> Iterator[str]:
    """Yield pieces of novels that end with a paragraph."""
    with tarfile.open(public("lm/babylike/english_novels_53.tar.xz")) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            if file is None:
                continue
            piece, words = list[str](), 0
            for paragraph in re.split(r"\n\s*\n", file.read().decode("utf-8-sig", "replace").replace("\r", "")):
                piece.append(" ".join(paragraph.split()))
                words += len(piece[-1].split())
                if words >= _PIECE_WORDS:
                    yield "\n".join(filter(None, piece))
                    piece, words = [], 0
            if words:
                yield "\n".join(filter(None, piece))


def conversations() -> Iterator[str]:
    """Yield Switchboard's conversations, one utterance a line, without speakers and dialogue acts."""
    for part in ("train", "val", "test"):
        text = lzma.decompress(public(f"lm/babylike/switchboard_{part}.txt.xz").read_bytes()).decode()
        for conversation in re.split(r"^# conversation .*\n", text, flags=re.MULTILINE)[1:]:
            yield "\n".join(line.split("|")[1] for line in conversation.splitlines() if line.count("|") >= 2)


def speech_to_children() -> Iterator[str]:
    """Yield transcripts of CHILDES, one utterance of an adult a line."""
    transcripts: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    with lzma.open(public("lm/babylike/childes_adult_speech.tsv.xz"), "rt", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["utterance"]:
                transcripts[row["corpus"], row["transcript_id"]].append(row["utterance"])
    yield from map("\n".join, transcripts.values())


def pairs(folder: pathlib.Path) -> None:
    """Write the minimal pairs of BLiMP and Zorro to `folder`/blimp.jsonl and `folder`/zorro.jsonl."""
    with zipfile.ZipFile(public("eval/blimp/BLiMP.zip")) as archive:
        names = sorted(name for name in archive.namelist() if re.fullmatch(r"data/\w+\.jsonl", name))
        blimp = [json.loads(line) for name in names for line in archive.read(name).decode().splitlines()]
    zorro = []
    for path in sorted(public("eval/zorro/sentences/babyberta").glob("*.txt.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        for bad, good in zip(lines[::2], lines[1::2], strict=True):
            zorro.append({"sentence_good": good, "sentence_bad": bad, "UID": path.name.removesuffix(".txt.gz")})
    write(folder, blimp=blimp, zorro=zorro)


def suite(folder: pathlib.Path) -> pathlib.Path:
    """Write a suite of both sets of pairs, which are in `folder`; return its file."""
    tasks = "".join(
        f"  - {{name: {name}, task: minimal_pairs, data: {folder / name}.jsonl, slice_key: UID}}\n" for name in GOALS
    )
    (folder / "suite.yaml").write_text(f"tasks:\n{tasks}")
    return folder / "suite.yaml"


def figures(scores: dict[str, float]) -> list[Figure]:
    """Make the figures of accuracies x 100, which are those of paradigms of equal size."""
    return [
        figure(f"{name}: accuracy x 100, beside {peer}", [scores[name]], published)
        for name, goals in GOALS.items()
        for peer, published in goals.items()
    ]


def row(name: str, title: str, why: str) -> Row:
    """Make the row of configs/babylm/NAME.py."""

    def measure(folder: pathlib.Path) -> list[Figure]:
        pairs(folder)
        run = folder / "seed_0"
        keys = {"data__source": corpus(folder), "logging__trackers": "none"}
        train(run, f"configs/babylm/{name}.py", 0, **keys)
        write_curve(folder, [run])
        command("evaluate", "--model", run, "--suite", suite(folder), "--output", folder / "scores")
        tasks = json.loads((folder / "scores" / "results.json").read_text())["tasks"]
        return figures({one: 100 * tasks[one]["scores"]["accuracy"]["mean"] for one in GOALS})

    return Row(title, SOURCE, why, measure, seeds=(0,))
