"""report: the page shows the content of the run directories, needs no network, and accepts unfinished and damaged runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from helpers.reporting_runs import LINES, data_of, final, lines_of, write_run, write_study
from helpers.train_helpers import metrics
from lm_research import report
from lm_research.reporting import contents
from lm_research.reporting import page as page_module
from lm_research.reporting.page import spaced
from lm_research.reporting.runs import named, read_run, read_samples

pytest.importorskip("plotly")


def same(a: object, b: object) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # in full, and NaN is NaN


def page_of(tmp_path: Path, *paths: Path) -> Path:
    page = tmp_path / "page.html"
    assert report.main([*map(str, paths), "--output", str(page)]) == 0
    return page


def test_numbers_of_the_page_match_the_file(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "a"))
    (run,) = data_of(page)["runs"]
    assert same(lines_of(run), sorted(LINES, key=lambda line: line["step"]))


def test_a_real_run(bert_run: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, bert_run)
    (run,) = data_of(page)["runs"]
    assert same(lines_of(run), sorted(metrics(bert_run), key=lambda line: (line["step"], "eval_loss_nats" in line)))
    assert all(table["axes"].keys() == {"tokens", "flops", "hours"} for table in run["tables"])
    read = read_run(bert_run)
    assert (read.status, read.notes) == ("finished", [])
    parameters = json.loads((bert_run / "environment.json").read_text())[0]["parameters"]
    assert read.parameters == parameters > 0
    assert [step for step, _ in read.samples] == [10, 20] and "->" in read.samples[0][1]
    assert f"{parameters:,}" in page.read_text()


def test_axes_are_rates_times_time(tmp_path: Path) -> None:
    (run,) = data_of(page_of(tmp_path, write_run(tmp_path / "a")))["runs"]
    trained, held_out = run["tables"]
    assert trained["columns"]["step"] == [10, 20] and held_out["columns"]["step"] == [15, 25]
    # 10 steps of 0.5 s at 1000 tokens/s, then of 0.25 s at 2000; step 15 is halfway; 5 more steps at the last rate
    assert trained["axes"]["tokens"] == [5000, 10000] and held_out["axes"]["tokens"] == [7500, 12500]
    assert trained["axes"]["flops"] == [2e7, 4e7] and held_out["axes"]["flops"] == [3e7, 5e7]
    assert trained["axes"]["hours"] == pytest.approx([5 / 3600, 7.5 / 3600], rel=1e-5)


def test_an_unknown_axis_is_left_out(tmp_path: Path) -> None:
    lines = [{key: value for key, value in line.items() if key != "flops_per_second"} for line in LINES]
    (run,) = data_of(page_of(tmp_path, write_run(tmp_path / "a", lines)))["runs"]
    assert run["tables"][0]["axes"].keys() == {"tokens", "hours"}


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html = page_of(tmp_path, write_run(tmp_path / "a")).read_text()
    ours = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert "default-src 'none'" in ours  # the browser refuses every fetch, the library's too
    assert not re.findall(r"\b(?:src|href|action)\s*=|@import|url\(", ours)


def test_text_of_a_run_is_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tokenizer__path="</script><script>alert(1)</script>")
    html = page_of(tmp_path, run).read_text()
    assert "alert(1)" in html and "<script>alert" not in html
    assert "<b>young" not in html and "&lt;b&gt;young" in html
    assert contents.to_json({"a": "</script>"}) == '{"a":"\\u003c/script>"}'


def test_configs_side_by_side(tmp_path: Path) -> None:
    runs = named([write_run(tmp_path / "a", train__batch_size=8), write_run(tmp_path / "b", train__batch_size=16)])
    different, same_in_all = contents.config_table(runs)
    assert different == {"train.batch_size": [8, 16]}
    assert "train.batch_size" not in same_in_all and same_in_all["seed"] == runs[0].config["seed"]
    html = page_of(tmp_path, tmp_path / "a", tmp_path / "b").read_text()
    assert '<th>train.batch_size</th><td>8</td><td class="mark">16</td>' in html
    assert "python -m lm_research.train &#39;--workdir=a folder&#39;" in html  # can be pasted


def test_spread_over_seeds(tmp_path: Path) -> None:
    losses = {0: 4.0, 1: 4.5, 2: 5.0}
    paths = [write_run(tmp_path / f"s{seed}", final(loss), seed=seed) for seed, loss in losses.items()]
    paths.append(write_run(tmp_path / "other", final(9.0), train__batch_size=99))
    paths.append(write_run(tmp_path / "unfinished", final(9.0), status=None, seed=7))
    (group,) = contents.spreads(named(paths))
    assert group["runs"] == ["s0", "s1", "s2"]
    assert group["metrics"]["eval_loss_nats"] == pytest.approx((4.5, 0.5))  # sqrt((0.25 + 0 + 0.25) / 2)
    (pair,) = contents.spreads(named([paths[0], paths[2]]))
    assert pair["metrics"]["eval_loss_nats"] == pytest.approx((4.5, 0.5**0.5))  # sqrt((0.25 + 0.25) / 1)
    assert contents.spreads(named(paths[:1])) == []


def test_items_are_evenly_spaced() -> None:
    assert spaced(range(11), 6) == [0, 2, 4, 6, 8, 10] and spaced(range(10), 4) == [0, 3, 6, 9]
    assert spaced(range(4), 4) == [0, 1, 2, 3] and spaced([5], 1) == [5] and spaced(range(100), 2) == [0, 99]


def test_samples_are_below_their_evaluation(tmp_path: Path) -> None:
    """Lines before the first evaluation and after another line are not samples; for a step evaluated twice the last ones count."""
    lines = [
        "  | lost",
        "held-out after step 5: x",
        "  | old",
        "step 6",
        "  | lost",
        "held-out after step 5: y",
        "  | new",
    ]
    (tmp_path / "log.txt").write_text("".join(f"2026-01-31 12:00:00 {line}\n" for line in lines))
    assert read_samples(tmp_path / "log.txt") == [(5, "new")]


def test_final_values_and_time(tmp_path: Path) -> None:
    table = contents.final_table(named([write_run(tmp_path / "a")]))
    assert table["status"] == ["finished"] and table["parameters"] == [1000]
    assert table["tokens"] == [12500] and table["loss_nats"] == [LINES[1]["loss_nats"]]
    assert table["hours in all"] == pytest.approx([100 / 3600])
    assert table["digest of parameters"] == ["ab12"]
    html = page_of(tmp_path, tmp_path / "a").read_text()
    assert '<td class="number">50.0%</td>' in html  # 50 of 100 seconds in steps


def test_runs_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")]
    assert [run.name for run in named(paths)] == list(map(str, paths))


def test_a_run_without_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [], status=None)
    (run / "time.json").unlink()
    (run / "log.txt").unlink()
    html = page_of(tmp_path, run).read_text()
    assert "metrics.jsonl has no metrics yet" in html


def test_a_run_in_progress_with_a_line_cut_short(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status=None)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')
    read = read_run(run)
    assert len(read.lines) == len(LINES) and (read.status, read.step) == ("unfinished", 25)
    cut, norm, perplexity, unfinished = read.notes
    assert "metrics.jsonl, line 5: incomplete" in cut and "is at step 25" in unfinished
    assert "grad_norm is not finite in 1 lines, first at step 20" in norm and "eval_perplexity" in perplexity
    assert "line 5: incomplete" in page_of(tmp_path, run).read_text()


@pytest.mark.parametrize("damage", ["}{", "[1]", "3", '{"loss_nats": 1}', '{"step": "2"}', "null"])
def test_a_damaged_line_is_named_and_the_others_are_kept(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "a")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], damage, *lines[1:]]) + "\n")
    read = read_run(run)
    assert same(read.lines, LINES)
    assert [note for note in read.notes if "metrics.jsonl, line 2: not a JSON object with a step" in note]


def test_a_summary_older_than_the_metrics_does_not_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status="stopped")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "step": 20}))
    assert read_run(run).status == "unfinished"  # it continued to 25


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "time.json"])
@pytest.mark.parametrize("content", ["{", "3", '[{"seconds": 3}]', "[3]"])
def test_other_damaged_files_leave_a_page(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "a")
    (run / name).write_text(content)
    assert len(data_of(page_of(tmp_path, run))["runs"]) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not a directory"),
        (lambda path: path.mkdir(), "has neither config.json nor study.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "cannot be read as a JSON"),
        (lambda path: (path.mkdir(), (path / "study.json").write_text("{}")), "cannot be read as a study"),
        (lambda path: write_study(path, [{"number": 0}]), "cannot be read as a study"),
        (lambda path: write_study(path, [], direction="up"), "neither minimize nor maximize"),
    ],
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], make, words: str) -> None:
    make(tmp_path / "a")
    assert report.main([str(tmp_path / "a"), "--output", str(tmp_path / "page.html")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and str(tmp_path / "a") in err


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a")
    assert report.main([str(run), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_page_of_one_run_is_in_its_directory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert report.main([str(run)]) == 0
    assert (run / "report.html").is_file()


def test_without_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert report.main([str(write_run(tmp_path / "a"))]) == 2
    assert "pip install 'lm_research[report]'" in capsys.readouterr().err


def test_scaling_law_of_runs(tmp_path: Path) -> None:
    """Held-out losses placed on 2 + 30 / N^0.5; an unfinished run is left out and named."""
    sizes = [10**3, 10**4, 10**5, 10**6, 10**7]
    paths = [write_run(tmp_path / f"n{n}", final(2 + 30 / n**0.5), parameters=n) for n in sizes]
    paths.append(write_run(tmp_path / "going", final(9.0), status=None, parameters=5))
    law = contents.scaling_law(named(paths))
    assert law is not None and {row[0]: row[1] for row in law["rows"]} == pytest.approx(
        {"E": 2, "A": 30, "alpha": 0.5}, rel=1e-3
    )
    assert law["notes"] == ["Left out as unfinished: going."] and len(law["points"]) == 5
    assert (law["fixed"], law["axis"]) == ("", 0)
    assert "Scaling law" in page_of(tmp_path, *paths).read_text()


def test_a_law_of_sizes_and_amounts_is_drawn_at_the_largest_amount(tmp_path: Path) -> None:
    """25 steps of LINES take 10 x 0.5 + 15 x 0.25 = 8.75 s."""
    rates = [(10**3, 8e3), (10**4, 8e6), (10**5, 8e4), (10**6, 8e5), (10**3, 8e6), (10**6, 8e3)]
    losses = [2 + 30 / n**0.5 + 40 / (8.75 * r) ** 0.3 for n, r in rates]
    paths = [
        write_run(tmp_path / f"n{i}", final(loss, r), parameters=n)
        for i, ((n, r), loss) in enumerate(zip(rates, losses, strict=True))
    ]
    law = contents.scaling_law(named(paths))
    assert law is not None and (law["axis"], law["variable"]) == (0, "parameters N")
    assert law["fixed"] == "the curve is for D = 7e+07 tokens"
    (first, *_), (last, loss, *_) = law["curve"][0], law["curve"][-1]
    assert (first, last) == pytest.approx((1e3, 1e7)) and len(law["curve"]) == 60  # tenfold the largest
    assert loss == pytest.approx(2 + 30 / 1e7**0.5 + 40 / 7e7**0.3, rel=1e-3)
    assert law["points"][3] == ["n3", 1e6, 7e6, losses[3]]


def test_no_law_across_objectives_or_for_one_size(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"n{n}", parameters=n) for n in (1, 2, 3)]
    assert "3 model sizes" in contents.scaling_law(named(paths))["refusal"]
    paths.append(write_run(tmp_path / "other", parameters=4, objective__name="causal_lm"))
    assert "differ in objective.name" in contents.scaling_law(named(paths))["refusal"]
    assert contents.scaling_law(named(paths[:1])) is None
    assert not math.isnan(len(page_of(tmp_path, *paths).read_text()))


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([5], 5),
        ([5, 7], 7),
        ([5, None], 5),
        ([5, 0, -1, True, "7", 2**63, 1.5], 5),
        ([2**63 - 1], 2**63 - 1),
        ([], None),
    ],
)
def test_the_size_of_a_run_is_that_of_its_last_valid_start(
    counts: list[object], found: int | None, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "a")
    (run / "environment.json").write_text(json.dumps([{"parameters": count} for count in counts]))
    assert read_run(run).parameters == found


@pytest.mark.parametrize(("count", "listed"), [(5, "2, 3, 4, 5, 6"), (6, "2, 3, 4, 5, 6, ...")])
def test_at_most_five_damaged_lines_are_listed(count: int, listed: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    first, *rest = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([first, *["3"] * count, *rest]) + "\n")
    (note,) = [note for note in read_run(run).notes if "line" in note and "not a JSON" in note]
    assert f"line {listed}: not a JSON object" in note


def test_a_title_has_four_names() -> None:
    assert page_module.title(list("abcd")) == "a, b, c, d" and page_module.title([]) == ""
    assert page_module.title(list("abcde")) == "a, b, c, d and 1 more"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (1234567, "1,234,567"),
        (0.1234567, "0.12346"),
        (1e10, "1e+10"),
        ("a", "a"),
        ([1], "[1]"),
    ],
)
def test_values_of_tables(value: object, text: str) -> None:
    assert page_module.number(value) == text
