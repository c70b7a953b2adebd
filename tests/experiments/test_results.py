"""The table of published results: rows that need no training agree where their data are, and one command measures them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest

from experiments.results import run, tables
from experiments.results.row import MEMORY, READ, VARIABLE, Figure, MissingData, Row, data_folder, public
from lm_research.errors import DataError

KNOWN = run.rows()
MEASURED = [name for name, row in KNOWN.items() if row.measure and not row.seeds]
SLOW = ("exact_sts", "exact_wikitext2", "exact_rouge", "exact_stories260k", "lm_wikitext2_ngram", "babylm_ngram")
DIFFERS = {
    "exact_stories260k": 1,
    "lm_wikitext2_ngram": 2,
    "babylm_ngram": 1,
}  # figures that differ, as the row's page explains


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MEASURED]
)
def test_a_row_without_training_agrees(name: str, tmp_path: pathlib.Path) -> None:
    """Figures are those that the row's source publishes; without the data of LM_RESEARCH_PUBLIC_DATA, the test is skipped."""
    measure = KNOWN[name].measure
    assert measure is not None
    try:
        figures = measure(tmp_path)
    except MissingData as error:
        pytest.skip(str(error))
    assert len([figure for figure in figures if not figure.agrees]) == DIFFERS.get(name, 0), figures


def test_the_table_is_that_of_the_stored_measurements(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pages").mkdir()
    for path in (run.FOLDER / "pages").glob("*.json"):
        (tmp_path / "pages" / path.name).write_bytes(path.read_bytes())
    tables.write(tmp_path, KNOWN)
    for path in [tmp_path / "results.md", *(tmp_path / "pages").glob("*.md")]:
        assert (run.FOLDER / path.relative_to(tmp_path)).read_text() == path.read_text(), path.name


def test_the_source_of_a_row_says_which_figures_are_from_memory() -> None:
    for path in (run.FOLDER / "pages").glob("*.json"):
        origins = {figure["origin"] for figure in json.loads(path.read_text())["figures"]}
        assert MEMORY not in origins or MEMORY in KNOWN[path.stem].source, path.name


def row(measure: Callable[[pathlib.Path], list[Figure]] | None, source: str = "a paper") -> Row:
    return Row(title="a question", source=source, why="Because.", measure=measure)


def fails(folder: pathlib.Path) -> list[Figure]:
    raise DataError("The file is damaged.")


def is_missing(folder: pathlib.Path) -> list[Figure]:
    return [Figure(str(public("none")), 0, 0, 0)]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = {
        "equal": row(lambda folder: [Figure("score", 70.004, 70.0, 0.005, READ)]),
        "reached": row(lambda folder: [Figure("score", 75.0, 70.0, 0.0, at_least=True)]),
        "other": row(
            lambda folder: [Figure("score", 69.0, 70.0, 0.5, MEMORY, at_least=True), Figure("count", 1200, 1200, 0)],
            source="a paper, from memory",
        ),
        "failing": row(fails),
        "missing": row(is_missing),
        "later": row(None),
    }
    monkeypatch.setattr(run, "rows", lambda: found)


def test_every_status_stays_in_the_table(rows: None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert run.main(["--output", str(tmp_path)]) == 1
    lines = (tmp_path / "results.md").read_text().splitlines()
    found = {line.split("]")[0].lstrip("| ["): line.split("|")[-2].strip() for line in lines if line.startswith("| [")}
    assert found == {
        "equal": "agrees",
        "reached": "agrees",
        "other": "differs",
        "failing": "failed",
        "missing": "planned",
        "later": "planned",
    }
    assert "The command fails: DataError: The file is damaged." in (tmp_path / "pages" / "failing.md").read_text()
    not_run, memory = (tmp_path / "results.md").read_text().split("## What no one has run")[1].split("\n## ")
    assert [name for name in found if f"[{name}]" in not_run] == ["missing", "later"]
    assert [name for name in found if f"[{name}]" in memory] == ["other"]
    assert "| ≥ 70 " in (tmp_path / "pages" / "other.md").read_text()
    assert f"missing: not measured. {tmp_path / 'none'} does not exist. Set {VARIABLE}" in capsys.readouterr().out


def test_selected_rows_are_measured_and_the_others_kept(rows: None, tmp_path: pathlib.Path) -> None:
    assert run.main(["--output", str(tmp_path), "--only", "equal,reach"]) == 0
    names = {path.name for path in (tmp_path / "pages").glob("*.json")}
    assert names == {"equal.json", "reached.json"}
    stored = json.loads((tmp_path / "pages" / "equal.json").read_text())
    assert stored["figures"][0]["ours"] == 70.004 and {"commit", "machine", "date", "seconds"} <= stored.keys()
    assert run.main(["--output", str(tmp_path), "--only", "other"]) == 1
    assert (tmp_path / "results.md").read_text().count("| agrees") == 2


def test_a_group_selects_its_rows_and_training_is_only_done_on_request() -> None:
    glue = run.select("glue", KNOWN)
    assert {name for name in KNOWN if name.startswith("glue_")} <= set(glue) and "exact_sts" not in glue
    assert run.select("classify", KNOWN) == ["classify_mr", "classify_sst2", "classify_sst5", "classify_trec"]
    assert set(run.select("", KNOWN)) == {name for name, one in KNOWN.items() if not one.seeds}


def test_an_unknown_row_is_named(rows: None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert run.main(["--output", str(tmp_path), "--only", "equals"]) == 2
    assert "--only has 'equals', which is not a row. Did you mean 'equal'?" in capsys.readouterr().err


def test_the_data_are_next_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert data_folder() == run.ROOT.parent / "shared" / "data" / "public"


def test_an_interval_of_more_than_a_third_agrees_with_nothing() -> None:
    """36 +- 22 is within 22.5 of 56.34, and says nothing about it."""
    assert not Figure("accuracy", 36.2, 56.34, 22.5, interval=22.5).agrees
    assert Figure("accuracy", 80.4, 83.5, 3.4, interval=3.0).agrees
