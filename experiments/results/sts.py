"""Suite of semantic textual similarity: STS-B's test part, and STS 2013, 2015 and 2016, for lm_research.evaluate.

All files of a year are one task. Pairs without a score are those that the year's organizers did not annotate.
"""

from __future__ import annotations

from experiments.results.row import public

_PAIRS = {
    "task": "embedding",
    "problem_type": "regression",
    "value_one": 5.0,
    "text_key": "first",
    "pair_key": "second",
    "label_key": "score",
    "skip_unlabeled": True,
    "metric": "spearman",
}
TASKS = [
    {
        "name": "stsb_test",
        "data": str(public("glue/STS-B/original/sts-test.tsv.gz")),
        "columns": ["genre", "file", "year", "id", "score", "first", "second"],
        **_PAIRS,
    },
    *(
        {
            "name": f"sts{year}",
            "data": str(public(f"similarity/sts/{year}") / "*.test.tsv.gz"),
            "columns": ["score", "first", "second"],
            **_PAIRS,
        }
        for year in (2013, 2015, 2016)
    ),
]
