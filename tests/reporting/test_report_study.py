"""A study on the page: what counts, what was best when, and which parameter matters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from helpers.reporting_runs import data_of, final, write_run, write_study
from lm_research import report
from lm_research.reporting import contents
from lm_research.reporting.runs import named
from lm_research.reporting.studies import read_study


def trial(number: int, value: float | None, state: str = "complete", **params: Any) -> dict[str, Any]:
    return {"number": number, "params": params, "value": value, "state": state, "run": f"trials/{number}", "reason": ""}


TRIALS = [
    trial(0, 5.0, lr=1e-3, name="a", same=1),
    trial(1, None, "failed", lr=1.0, name="a", same=1) | {"reason": "the loss was <NaN>"},
    trial(2, 4.0, "COMPLETE", lr=1e-2, name="b", same=1),
    trial(3, 4.5, lr=3e-3, name="b", same=1),
    trial(4, 3.0, "pruned", lr=1e-1, name="b", same=1),
    trial(5, 3.5, lr=3e-2, name="a", same=1),
    trial(6, 1.0, "running", lr=2e-2, name="a", same=1),
    trial(7, math.nan, lr=5e-2, name="a", same=1),
]


def test_what_counts(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, list(reversed(TRIALS))))
    assert [t["number"] for t in study.measured] == [0, 2, 3, 5]
    assert [t["number"] for t in study.ranked] == [5, 2, 3, 0]
    assert study.best_so_far() == [(0, 5.0), (2, 4.0), (3, 4.0), (5, 3.5)]


def test_the_larger_the_better(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, TRIALS, direction="maximize"))
    assert study.best_so_far() == [(0, 5.0), (2, 5.0), (3, 5.0), (5, 5.0)]
    assert study.ranked[0]["number"] == 0


def test_importance(tmp_path: Path) -> None:
    """Ranks of the values 5, 4, 4.5, 3.5 are 4, 2, 3, 1 and of lr 1, 3, 2, 4: exactly reversed.

    Of the names, a has ranks 4 and 1, b 2 and 3; both have the mean 2.5, so nothing is between them.
    """
    study = read_study(write_study(tmp_path, TRIALS))
    assert study.importance() == pytest.approx({"lr": 1.0, "name": 0.0})
    swapped = [t | {"params": {"name": "a" if t["number"] in (0, 3) else "b"}} for t in TRIALS]
    # ranks 4, 3 against 2, 1: means 3.5 and 1.5, so 4 x 1 of the sum of squares 2.25 + 0.25 + 0.25 + 2.25 = 5
    assert read_study(write_study(tmp_path, swapped)).importance() == pytest.approx({"name": math.sqrt(4 / 5)})


def test_importance_of_several_names_in_order(tmp_path: Path) -> None:
    """Names with the ranks 1 and 2, 3 and 4, 5 and 6: of the squares 17.5 around 3.5, 2 x 4 + 0 + 2 x 4 are between them.

    lr has the ranks 2, 1, 4, 3, 6, 5: Spearman's 1 - 6 x 6 / (6 x 35) = 29 / 35, which is less.
    """
    trials = [trial(n, float(n), lr=float(lr), name="abc"[n // 2]) for n, lr in enumerate((2, 1, 4, 3, 6, 5))]
    found = read_study(write_study(tmp_path, trials)).importance()
    assert (
        read_study(write_study(tmp_path, [t | {"value": 2.0} for t in trials])).importance() == {}
    )  # no order to follow
    assert list(found.items()) == [("name", pytest.approx(math.sqrt(16 / 17.5))), ("lr", pytest.approx(29 / 35))]


def test_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    again = trial(8, 5.0, lr=1e-3, name="a", same=1) | {"run": "trials/0"}  # two trials may share a run
    folder = write_study(tmp_path / "sweep", [*TRIALS, again])
    for number, value in ((0, 5.0), (2, 4.0), (3, 4.5)):
        write_run(folder / "trials" / str(number), final(value))
    assert report.main([str(folder), "--output", str(tmp_path / "page.html")]) == 0
    html, data = (tmp_path / "page.html").read_text(), data_of(tmp_path / "page.html")
    assert [run["name"] for run in data["runs"]] == [
        "trial 0 (0.001, a)",
        "trial 2 (0.01, b)",
        "trial 3 (0.003, b)",
    ]
    (study,) = data["studies"]
    assert [t["value"] for t in study["trials"]] == [5.0, None, 4.0, 4.5, 3.0, 3.5, 1.0, "NaN", 5.0]
    assert study["measured"] == [0, 2, 3, 5, 8]
    assert "the loss was &lt;NaN&gt;" in html and "Best: trial 5" in html
    assert "No curves of trials 5, whose runs cannot be read" in html


def test_of_many_trials_the_best_have_curves(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    trials = [trial(number, float(100 - number), lr=number) for number in range(15)]
    folder = write_study(tmp_path / "sweep", trials)
    for number in range(15):
        write_run(folder / "trials" / str(number))
    assert report.main([str(folder)]) == 0
    names = {run["name"] for run in data_of(folder / "report.html")["runs"]}
    assert names == {f"trial {number} ({number})" for number in range(3, 15)}
    assert "curves of the best 12 of 15 trials" in (folder / "report.html").read_text()


def test_trials_are_named_by_what_distinguishes_them(tmp_path: Path) -> None:
    """Not the seed, nor what is the same in all; of keys that change together only the first."""
    sizes = [(64, 2), (128, 4)]
    trials = [
        trial(4 * i + 2 * j + seed, 1.0, depth=2, width=width, heads=heads, rate=rate, seed=seed)
        for i, (width, heads) in enumerate(sizes)
        for j, rate in enumerate((0.1, 0.2))
        for seed in (0, 1)
    ]
    begun = trial(8, None, "running")
    study = read_study(write_study(tmp_path, [*trials, begun]))
    assert study.varied == ["width", "rate"]
    assert [study.label(study.trials[number]) for number in (0, 3, 6, 8)] == [
        "trial 0 (64, 0.1)",
        "trial 3 (64, 0.2)",
        "trial 6 (128, 0.2)",
        "trial 8",
    ]


def test_laws_and_spreads_are_over_all_trials(tmp_path: Path) -> None:
    """Losses placed on 2 + 30 / N^0.5 in 5 sizes of 4 seeds: more runs than have curves."""
    pytest.importorskip("plotly")
    sizes = [10**3, 10**4, 10**5, 10**6, 10**7]
    points = [(size, seed) for size in sizes for seed in range(4)]
    losses = [2 + 30 / size**0.5 + 0.001 * (seed - 1.5) for size, seed in points]
    trials = [trial(i, loss, size=points[i][0], seed=points[i][1]) for i, loss in enumerate(losses)]
    folder = write_study(tmp_path / "sweep", trials)
    for number, ((size, seed), loss) in enumerate(zip(points, losses, strict=True)):
        write_run(
            folder / "trials" / str(number),
            final(loss),
            parameters=size,
            seed=seed,
            model__hidden_size=sizes.index(size) + 1,
        )
    material = contents.gather_report([folder])
    assert len(material.runs) == 12 and len(material.all_runs) == 20
    law = contents.scaling_law(material.all_runs)
    assert len(law["points"]) == 20
    assert {row[0]: row[1] for row in law["rows"]} == pytest.approx({"E": 2, "A": 30, "alpha": 0.5}, rel=0.01)
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").read_text().count("<th>mean of 4</th>") == 5


def test_a_law_is_about_the_best_recipe_of_each_size(tmp_path: Path) -> None:
    """Each size with a good learning rate, on 2 + 30 / N^0.5, and a bad one."""
    paths = []
    for size in (10**3, 10**4, 10**5, 10**6):
        good = 2 + 30 / size**0.5
        for seed in (0, 1):
            paths.append(write_run(tmp_path / f"good{size}-{seed}", final(good), parameters=size, seed=seed))
            bad = dict(parameters=size, seed=seed, optimizer__learning_rate=0.5)
            paths.append(write_run(tmp_path / f"bad{size}-{seed}", final(3 * good), **bad))
    law = contents.scaling_law(named(paths))
    assert {row[0]: row[1] for row in law["rows"]} == pytest.approx({"E": 2, "A": 30, "alpha": 0.5}, rel=1e-3)
    assert len(law["points"]) == 8 and "differ in optimizer.learning_rate" in law["notes"][0]
    assert "unfinished" not in " ".join(law["notes"])


def test_two_studies_of_one_name(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    folders = []
    for parent in ("x", "y"):
        folders.append(write_study(tmp_path / parent / "lr", [trial(0, 1.0, lr=1.0), trial(1, 2.0, lr=2.0)]))
        write_run(folders[-1] / "trials" / "0")
    assert report.main([*map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text()
    assert all(f"<h2>Study {folder}</h2>" in html for folder in folders)
    names = [run["name"] for run in data_of(tmp_path / "page.html")["runs"]]
    assert names == [f"{folder}: trial 0 (1)" for folder in folders]
