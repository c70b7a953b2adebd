"""The plain helpers of experiments/benchmarks/train_step: rows, batches, statistics, tables, and the worker's protocol."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.train_step import report, run, workload
from experiments.benchmarks.train_step.worker import Side, take_steps
from experiments.benchmarks.train_step.workload import Row
from helpers import tiny
from lm_research.objectives import build_objective

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROW = Row("bert", 2, 128, 128, 16)


def turn(*seconds: float, others: float | None = 0.0, cpu_seconds: float = 1.0) -> dict[str, Any]:
    return {"seconds": list(seconds), "cpu_seconds": cpu_seconds, "steps": len(seconds), "others": others}


def side(*turns: dict[str, Any], **about: Any) -> dict[str, Any]:
    return {
        "variant": "plain",
        "turns": list(turns),
        "about": about,
        "memory": {"peak_bytes": 300 * 2**20, "device_peak_bytes": None},
    }


def result(row: Row = ROW, **sides: dict[str, Any]) -> dict[str, Any]:
    made = {"row": dataclasses.asdict(row), "sides": sides}
    return made | {"summary": report.summarize(made)}


def test_all_rows_are_the_issue_s_grid() -> None:
    rows = workload.choose("all", "paper,equal", "cpu")
    grid = {(row.family, row.layers, row.width, row.length, row.mode) for row in rows}
    sizes = ((2, 128), (4, 256), (4, 512))
    expected = {
        (family, *size, length, mode)
        for family in ("bert", "gpt2")
        for size in sizes
        for length in (128, 512)
        for mode in ("paper", "equal")
    }
    assert grid == expected and len(rows) == 24
    assert all(8 <= row.batch <= 32 for row in rows)
    assert [row.mode for row in rows] == ["paper"] * 12 + ["equal"] * 12


def test_goals_follow_the_table_and_exist_only_on_a_cpu() -> None:
    def goal(*args, **kwargs):
        return Row(*args, length=128, batch=8, **kwargs).goal

    assert (goal("bert", 2, 128), goal("bert", 4, 256), goal("bert", 4, 512)) == (3.0, 3.0, 2.0)
    assert goal("gpt2", 4, 512) == 1.25
    assert goal("bert", 4, 256, mode="equal") == goal("gpt2", 4, 256, mode="equal") == 1.1
    assert all(row.goal is None for row in workload.ACCELERATOR_ROWS)


def test_selecting_by_name_keeps_order_and_drops_repeats() -> None:
    rows = workload.choose("gpt2-4x256-512,quick,bert-2x128-128", "equal", "cpu")
    assert [row.name for row in rows] == ["gpt2-4x256-512", "bert-2x128-128", "gpt2-2x128-128"]
    assert workload.choose("all", "paper", "gpu") == list(workload.ACCELERATOR_ROWS)


@pytest.mark.parametrize(("names", "modes"), [("bert-3x128-128", "paper"), ("quick", "papers")])
def test_unknown_names_are_refused_with_the_valid_ones(names: str, modes: str) -> None:
    with pytest.raises(ValueError, match=r"'(bert-3x128-128|papers)'. Valid: .*(quick|equal)"):
        workload.choose(names, modes, "cpu")


def test_bert_batches_mask_distinct_positions_in_order() -> None:
    first, second = (batch for _, batch in zip(range(2), workload.batches(ROW), strict=False))
    assert first["mask_positions_BM"].shape == (16, 20)  # ceil(0.15 x 128) = ceil(19.2)
    assert (np.diff(first["mask_positions_BM"], axis=1) > 0).all()
    assert first["mask_positions_BM"].max() < 128 and first["targets_BM"].max() < 30522
    assert (first["tokens_BL"] != second["tokens_BL"]).mean() > 0.9
    again = next(workload.batches(ROW))
    assert all((again[name] == first[name]).all() for name in first)


def test_gpt2_targets_are_the_next_tokens() -> None:
    batch = next(workload.batches(Row("gpt2", 2, 128, 32, 4)))
    assert (batch["targets_BL"][:, :-1] == batch["tokens_BL"][:, 1:]).all()
    assert batch["targets_BL"].shape == batch["tokens_BL"].shape == (4, 32)


def test_our_side_gets_every_array_its_objective_makes_itself(tmp_path: pathlib.Path) -> None:
    """Names and types equal those of real batches, so that the timed step is the one that trains."""
    for family, row in (("bert", Row("bert", 2, 16, 16, 4)), ("gpt2", Row("gpt2", 2, 16, 16, 4))):
        config, tokenizer = tiny.config(family), tiny.WordTokenizer()
        objective = build_objective(config, tokenizer, tiny.model(family).arch)
        store = tiny.store(tmp_path / family, tiny.documents(0, 40))
        real = objective.examples(store, "train").batch(np.zeros(4, np.int64), np.arange(4))
        ours = next(workload.batches(row))
        assert {name: (x.shape, x.dtype) for name, x in real.items()} == {
            n: (x.shape, x.dtype) for n, x in ours.items()
        }


def test_summary_divides_medians_of_quiet_rounds_only() -> None:
    ours = side(turn(1.0, 1.2), turn(9.0, 9.0, others=0.5), turn(1.1, 1.4))
    torch = side(turn(3.0, cpu_seconds=4.0), turn(3.0), turn(2.0, cpu_seconds=4.0))
    summary = result(ours=ours, torch=torch)["summary"]
    assert (summary["quiet"], summary["rounds"]) == (2, 3)
    # Quiet steps: ours 1.0 1.2 1.1 1.4, median 1.15; torch 3.0 2.0, median 2.5.
    assert summary["ratio"] == pytest.approx(2.5 / 1.15)
    assert summary["fastest_ratio"] == pytest.approx(2.0 / 1.0)
    # Processor time: ours 2 s in 4 steps, torch 8 s in 2.
    assert summary["cpu_ratio"] == pytest.approx(4.0 / 0.5)
    assert summary["sides"]["ours"]["tokens_per_second"] == pytest.approx(16 * 128 / 1.15)


def test_a_round_is_disturbed_if_either_turn_was() -> None:
    ours, torch = side(turn(1.0), turn(2.0)), side(turn(3.0, others=0.2), turn(4.0))
    summary = result(ours=ours, torch=torch)["summary"]
    assert (summary["quiet"], summary["ratio"]) == (1, 2.0)


def test_without_a_quiet_round_all_count_and_the_table_notes_it() -> None:
    made = result(ours=side(turn(1.0, others=0.9), turn(3.0, others=0.9)), torch=side(turn(2.0), turn(2.0)))
    assert (made["summary"]["quiet"], made["summary"]["ratio"]) == (0, 1.0)
    assert "0 of 2" in report.table([made], "paper")


def test_our_side_without_torch_gives_a_table_without_a_ratio() -> None:
    text = report.table([result(ours=side(turn(0.5)))], "paper")
    cells = [cell.strip() for cell in text.splitlines()[4].split("|")[1:-1]]
    assert cells[:7] == ["bert 2x128", "128", "16", "4,096", "-", "-", "3"]  # 2,048 tokens / 0.5 s
    assert report.table([], "paper") == ""


def test_the_table_marks_a_missed_goal() -> None:
    missed = report.table([result(ours=side(turn(1.0)), torch=side(turn(2.9)))], "paper")
    reached = report.table([result(ours=side(turn(1.0)), torch=side(turn(3.1)))], "paper")
    assert "| 2.90 | 3 (short) |" in missed and "| 3.10 | 3 |" in reached
    assert all(len(line.split("|")) == len(missed.splitlines()[2].split("|")) for line in missed.splitlines()[2:])


def test_mfu_is_flops_done_over_flops_possible() -> None:
    row = Row("gpt2", 12, 768, 1024, 16, dtype="bfloat16")
    made = result(row, ours=side(turn(0.1), flops_per_token=1e9, peak_flops=1e15))
    # 16,384 tokens in 0.1 s, 1e9 FLOP each, of 1e15 a second: 16.4%.
    assert made["summary"]["sides"]["ours"]["mfu"] == pytest.approx(0.16384)
    assert "16.4%" in report.table([made], "paper")


class CountingSide(Side):
    about, wait_each = {}, True

    def __init__(self, wait_each: bool) -> None:
        self.wait_each, self.calls = wait_each, []

    def prepare(self, batch: dict[str, Any]) -> Any:
        return batch

    def step(self, prepared: Any) -> None:
        self.calls.append(prepared)

    def wait(self) -> None:
        self.calls.append("wait")

    def loss(self) -> float:
        return 1.5


def test_a_turn_waits_after_each_step_on_a_cpu_and_once_elsewhere() -> None:
    eager, lazy = CountingSide(True), CountingSide(False)
    assert len(take_steps(eager, [1, 2, 3])["seconds"]) == 3
    assert len(take_steps(lazy, [1, 2, 3])["seconds"]) == 1
    assert eager.calls[:4] == [1, "wait", 2, "wait"] and lazy.calls == [1, 2, 3, "wait"]


def test_a_bad_row_name_ends_with_the_valid_ones(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(run, "describe_device", lambda: {"platform": "cpu", "kind": "cpu"})
    assert run.main(["--rows=bert-1x1-1"]) == 2
    assert "bert-2x128-128" in capsys.readouterr().err


def test_a_run_measures_and_writes_results_after_each_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: Any
) -> None:
    """The rounds, with in-process workers that take the seconds in `pace`."""
    pace = {"sdpa": 4.0, "eager": 6.0, True: 3.0, False: 2.0}  # attention; scan_layers; half of it in bfloat16

    class FakeWorker:
        def __init__(self, module: str, keep_freed_memory: bool = True) -> None:
            self.clock, self.options = 0.0, {}

        def request(self, **request: Any) -> dict[str, Any]:
            if "build" in request:
                self.options = request["options"]
                return {"seconds": 1.0, "parameters": 7}
            if "go" in request:
                way = self.options.get("attention", self.options.get("scan_layers", True))
                seconds = pace[way] / (2 if self.options["dtype"] == "bfloat16" else 1)
                self.clock += request["go"] * seconds
                times = [seconds] * request["go"]
                return {"seconds": times, "cpu_seconds": sum(times), "loss": 1.0, "process_seconds": self.clock}
            return {"peak_bytes": 2**30, "device_peak_bytes": None}

        def close(self) -> None:
            pass

    monkeypatch.setattr(run, "Worker", FakeWorker)
    monkeypatch.setattr(run, "describe_device", lambda: {"platform": "cpu", "kind": "cpu"})
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(run, "busy_seconds", lambda: None)
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    output = tmp_path / "results.json"
    assert run.main(["--rows=bert-2x128-128", "--modes=paper", "--repeats=2", f"--output={output}"]) == 0
    written = json.loads(output.read_text())
    (row,) = written["results"]
    assert (row["summary"]["ratio"], row["summary"]["rounds"]) == (2.0, 2)
    assert [side["variant"] for side in row["sides"].values()] == ["unrolled bfloat16", "sdpa bfloat16"]  # the fastest
    assert {name for side in row["sides"].values() for name in side["probes"]} == {
        f"{way} {dtype}" for way in ("scan", "unrolled", "sdpa", "eager") for dtype in ("float32", "bfloat16")
    }
    assert [len(turn["seconds"]) for turn in row["sides"]["ours"]["turns"]] == [2, 2]  # round(2.5 s / 1 s)
    assert written["environment"]["cores"] and written["environment"]["versions"]["jax"]
    printed = capsys.readouterr().out
    assert run.main([f"--tables={output}"]) == 0
    assert capsys.readouterr().out == printed and "| 2.00 | 3 (short) |" in printed


def test_each_side_runs_in_both_types_on_a_cpu_only() -> None:
    def types(platform: str, *argv: str) -> list[str | None]:
        ways = run.variants(run.parse(["--side", "ours", *argv]), platform)[report.OURS]
        return [way.get("dtype") for way in ways.values()]

    assert types("cpu") == ["float32", "float32", "bfloat16", "bfloat16"]
    assert types("cpu", "--dtype", "bfloat16") == ["bfloat16", "bfloat16"]
    assert types("gpu") == [None, None]
