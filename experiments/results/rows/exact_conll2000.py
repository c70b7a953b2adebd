"""The baseline of CoNLL-2000: the most frequent chunk tag of each part of speech."""

from __future__ import annotations

import collections
import pathlib
import zipfile

from experiments.results.row import Figure, Row, public
from lm_research.data.sources.files import find_files
from lm_research.metrics import MetricInputs
from lm_research.tasks.columns import read_columns

PUBLISHED = {"precision": 72.58, "recall": 82.14, "f1": 77.07}


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count tags in the training part, and score their prediction on the test part."""
    with zipfile.ZipFile(public("tagging/conll2000/conll2000.zip")) as archive:
        for part in ("train", "test"):
            (folder / f"{part}.conll").write_bytes(archive.read(f"conll2000/{part}.txt"))

    def column(part: str, number: str) -> list[list[str]]:
        (file,) = find_files(str(folder / f"{part}.conll"))
        return [sentence.tags for sentence in read_columns(file, number)]

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    train_speech, train_chunks = column("train", "2"), column("train", "3")
    for speech, chunks in zip(train_speech, train_chunks, strict=True):
        for part, chunk in zip(speech, chunks, strict=True):
            counts[part][chunk] += 1
    best = {part: found.most_common(1)[0][0] for part, found in counts.items()}
    references = column("test", "3")
    predictions = [[best[part] for part in speech] for speech in column("test", "2")]
    scores = MetricInputs("tags", predictions=predictions, references=references).score(PUBLISHED)
    figures = [Figure(f"{name} of chunks", 100 * scores[name], value, 0.005) for name, value in PUBLISHED.items()]
    figures.append(Figure("training sentences", len(train_chunks), 8936, 0))
    return [figures[2], *figures[:2], figures[3], Figure("test sentences", len(references), 2012, 0)]


ROW = Row(
    title="CoNLL-2000's baseline of chunking",
    source="Tjong Kim Sang and Buchholz 2000; the corpus of nltk/nltk_data at 5db857e",
    why="Equal: chunks are counted as the task's conlleval script counts them.",
    measure=measure,
)
