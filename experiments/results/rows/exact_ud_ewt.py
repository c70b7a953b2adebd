"""Part-of-speech tagging of English EWT by the most frequent tag of each word form."""

from __future__ import annotations

import collections
import pathlib

from experiments.results.row import COMPUTED, Figure, Row, public
from lm_research.data.sources.files import find_files
from lm_research.metrics import MetricInputs
from lm_research.tasks.columns import Sentence, read_columns


def read(part: str) -> list[Sentence]:
    """Read the sentences of a part, with universal tags."""
    (file,) = find_files(str(public(f"tagging/ud_english_ewt/en_ewt-ud-{part}.conllu.xz")))
    return list(read_columns(file, "UPOS"))


def measure(folder: pathlib.Path) -> list[Figure]:
    """Count the tags of the training part; a form that it does not have is a noun."""
    train, test = read("train"), read("test")
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    predictions = [[best.get(word, "NOUN") for word in sentence.words] for sentence in test]
    scores = MetricInputs("tags", predictions=predictions, references=[sentence.tags for sentence in test]).score(
        ["accuracy"]
    )
    words = [word for sentence in test for word in sentence.words]
    unseen = sum(word not in best for word in words)
    return [
        Figure("accuracy on test, %", 100 * scores["accuracy"], 86.20, 0.005, COMPUTED),
        Figure("unseen forms, %", 100 * unseen / len(words), 9.13, 0.005, COMPUTED),
        Figure("words", len(words), 25094, 0, COMPUTED),
    ]


ROW = Row(
    title="UD English EWT: most frequent tag of each form",
    source="UniversalDependencies/UD_English-EWT at 15d613d",
    why="Equal, where the training part decides: the first of equally frequent tags is taken.",
    measure=measure,
)
