"""Entity F1 of the systems that were submitted to WNUT-17."""

from __future__ import annotations

import itertools
import pathlib

from experiments.results.row import COMPUTED, Figure, Row, public
from lm_research.data.sources.files import find_files
from lm_research.metrics import MetricInputs
from lm_research.tasks.columns import read_columns

# Submission -> team, and its F1 in the task's paper.
SUBMISSIONS = {
    "uh_ritual.gz": ("UH-RiTUAL", 41.86),
    "spinningbytes.txt.gz": ("SpinningBytes", 40.78),
    "sjtu_adapt.txt.gz": ("SJTU-Adapt", 40.42),
    "flytxt.gz": ("FLYTXT", 38.35),
    "mic-cis.txt.gz": ("MIC-CIS", 37.06),
    "drexel_cci.gz": ("Drexel-CCI", 26.30),
}


def tags_of(path: pathlib.Path) -> list[list[str]]:
    """Read the tags of each sentence of a column file."""
    (file,) = find_files(str(path))
    return [sentence.tags for sentence in read_columns(file, "")]


def measure(folder: pathlib.Path) -> list[Figure]:
    """Score each submission; its tags are joined with the words in order, because some divide sentences differently."""
    references, figures = tags_of(public("tagging/wnut17/emerging.test.annotated.gz")), []
    for file, (team, published) in SUBMISSIONS.items():
        tags = itertools.chain.from_iterable(tags_of(public("tagging/wnut17/submissions") / file))
        predictions = [list(itertools.islice(tags, len(sentence))) for sentence in references]
        scores = MetricInputs("tags", predictions=predictions, references=references).score(["f1"])
        figures.append(Figure(f"{team}: F1", 100 * scores["f1"], published, 0.005, COMPUTED))
    return figures


ROW = Row(
    title="Entity F1 of WNUT-17's submissions",
    source="Derczynski et al. 2017, table of results; submissions of leondz/emerging_entities_17 at e52a2d2",
    why="Equal: entities are counted as conlleval counts them. The submission of Arcada is left out: its words are in another order.",
    measure=measure,
)
