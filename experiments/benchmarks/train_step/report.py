"""From turns to numbers and tables. Plain Python, so that it can be tested anywhere.

A turn is one side's steps in one round: {"seconds": [...], "cpu_seconds", "loss", "others"}, where `others` is the fraction of
the machine that processes other than this side's used meanwhile, or None if unknown.
"""

from __future__ import annotations

import statistics
from typing import Any

from experiments.benchmarks.train_step.workload import MODES, Row

OURS, TORCH = "ours", "torch"
# A round counts as quiet when others used less than this share of the machine in each of its turns.
QUIET_SHARE = 0.1


def is_quiet(turns: list[dict[str, Any]]) -> bool:
    """Return whether a round was undisturbed, given one turn of each side; unknown counts as quiet."""
    return all(turn["others"] is None or turn["others"] < QUIET_SHARE for turn in turns)


def quiet_rounds(sides: dict[str, dict[str, Any]]) -> list[int]:
    """Return the numbers of the rounds in which every side's turn was quiet."""
    rounds = zip(*(side["turns"] for side in sides.values()), strict=True)
    return [number for number, turns in enumerate(rounds) if is_quiet(list(turns))]


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Compute the numbers of one row.

    Args:
      result: {"row": fields of a Row, "sides": {"ours": {"turns": [...], ...}, "torch": the same or missing}}.

    Returns:
      quiet: quiet rounds; rounds: all of them. Only the quiet ones are used, unless there is none.
      sides: name -> median, fastest and slowest seconds of a step, tokens_per_second (from the median), cpu_seconds a
        step, and mfu where FLOPs and peak of ours are available.
      ratio, fastest_ratio, cpu_ratio: PyTorch's seconds over ours, by medians, by fastest steps, by processor time.
    """
    row, sides = Row(**result["row"]), result["sides"]
    quiet = quiet_rounds(sides)
    total = len(sides[OURS]["turns"])
    used = quiet or range(total)
    numbers = {name: _side_numbers(row, [side["turns"][number] for number in used]) for name, side in sides.items()}
    about = sides[OURS].get("about", {})
    if about.get("peak_flops"):
        for side in numbers.values():
            side["mfu"] = about["flops_per_token"] * side["tokens_per_second"] / about["peak_flops"]
    summary = {"quiet": len(quiet), "rounds": total, "sides": numbers}
    if TORCH in numbers:
        for name, key in (("ratio", "median"), ("fastest_ratio", "fastest"), ("cpu_ratio", "cpu_seconds")):
            summary[name] = numbers[TORCH][key] / numbers[OURS][key]
    return summary


def _side_numbers(row: Row, turns: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [second for turn in turns for second in turn["seconds"]]
    steps = sum(turn["steps"] for turn in turns)
    median = statistics.median(seconds)
    return {
        "median": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "tokens_per_second": row.tokens / median,
        "cpu_seconds": sum(turn["cpu_seconds"] for turn in turns) / steps,
    }


def table(results: list[dict[str, Any]], mode: str) -> str:
    """Return the Markdown table of one mode, with a heading; empty without rows."""
    results = [result for result in results if result["row"]["mode"] == mode]
    if not results:
        return ""
    columns = ["model", "length", "batch", "ours tokens/s", "torch tokens/s", "ratio", "goal"]
    columns += ["by fastest", "by CPU time", "ours ms", "torch ms", "ours MiB", "torch MiB", "variants", "quiet"]
    with_mfu = any("mfu" in result["summary"]["sides"][OURS] for result in results)
    columns += ["ours MFU", "torch MFU"] if with_mfu else []
    lines = [f"### {mode}: {MODES[mode]}", "", _line(columns), _line("---" for _ in columns)]
    lines += [_line(_cells(result, with_mfu)) for result in results]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(result: dict[str, Any], with_mfu: bool) -> list[str]:
    row, summary = Row(**result["row"]), result["summary"]
    ours, torch = summary["sides"][OURS], summary["sides"].get(TORCH)
    ratio, goal = summary.get("ratio"), row.goal
    verdict = "" if goal is None else f"{goal:g}" + ("" if ratio is None or ratio >= goal else " (short)")
    cells = [f"{row.family} {row.layers}x{row.width}", str(row.length), str(row.batch)]
    cells += [_tokens(ours), _tokens(torch), _ratio(ratio), verdict]
    cells += [_ratio(summary.get("fastest_ratio")), _ratio(summary.get("cpu_ratio"))]
    cells += [_milliseconds(ours), _milliseconds(torch)]
    cells += [_memory(result["sides"][OURS]), _memory(result["sides"].get(TORCH))]
    variants = " / ".join(side["variant"] for side in result["sides"].values())
    cells += [variants, f"{summary['quiet']} of {summary['rounds']}"]
    return cells + ([_percent(ours), _percent(torch)] if with_mfu else [])


def _tokens(side: dict[str, float] | None) -> str:
    return f"{side['tokens_per_second']:,.0f}" if side else "-"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(side: dict[str, float] | None) -> str:
    if side is None:
        return "-"
    return f"{1000 * side['median']:.0f} ({1000 * side['fastest']:.0f} to {1000 * side['slowest']:.0f})"


def _memory(side: dict[str, Any] | None) -> str:
    """Return the memory of the accelerator if there is one, or else of the process."""
    memory = side["memory"] if side else {}
    peak = memory.get("device_peak_bytes") or memory.get("peak_bytes")
    return f"{peak / 2**20:,.0f}" if peak else "-"


def _percent(side: dict[str, float] | None) -> str:
    return f"{100 * side['mfu']:.1f}%" if side and "mfu" in side else "-"
