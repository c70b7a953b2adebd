"""Plans of small models on machines of every kind are those in goldens/plans.json, to nine digits.

They are not from another program: test_estimate.py compares parts of them with arithmetic, test_compiled.py with the compiler. This
detects a change that affects other plans. After an intended change, rewrite them:

    PYTHONPATH=.:tests python tests/planning/test_stored_plans.py > tests/planning/goldens/plans.json
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from lm_research.planning import report
from lm_research.planning.estimate import plan_run
from lm_research.planning.report import table
from lm_research.planning.search import search
from lm_research.planning.topology import parse_topology

GOLDEN = Path(__file__).parent / "goldens" / "plans.json"
# family, topology, slices, sections of the config
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "whole copies": ("bert", "v5e:4x4", 1, {"train": {"batch_size": 64}}),
    "divided": ("gpt2", "v5p:2x2x4", 1, {"mesh": {"fsdp": 8, "tensor": 2}, "train": {"batch_size": 128, "accumulation_steps": 4}}),
    "slices": ("gpt2", "h100:4", 2, {"mesh": {"data": 2, "fsdp": 4}, "train": {"batch_size": 16}, "model": {"remat": "full"}}),
    "rings": ("gpt2", "h200:8", 1, {"mesh": {"data": 2, "context": 4}, "train": {"batch_size": 4}, "model": {"remat": "dots"}}),
    "both sides": ("bert", "v4:2x2x4", 1, {"mesh": {"fsdp": 16}, "train": {"batch_size": 32}, "objective": {"name": "denoising"}, "model": {"family": "bart", "dtype": "bfloat16"}}),
    "zero1": ("bert", "a100:8", 1, {"mesh": {"data": 8, "zero1": True}, "train": {"batch_size": 8, "ema_decay": 0.9}}),
    "one": ("gpt2", "b200:1", 1, {"train": {"batch_size": 2}, "optimizer": {"name": "adafactor"}}),
}  # fmt: skip


def rounded(value: Any) -> Any:
    """Plain JSON, with nine digits of each number."""
    if isinstance(value, dict):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def plan_of(name: str) -> Any:
    family, machine, slices, sections = CASES[name]
    plan = plan_run(tiny.config(family, **sections), parse_topology(machine, slices), 2.0)
    return {**rounded(dataclasses.asdict(plan)), "table": table(plan).splitlines()}


def ranking() -> Any:
    """Mesh, rows, remat and seconds of all plans of a search, best first, and the printed table."""
    plans = search(tiny.config("gpt2", train={"batch_size": 12}), parse_topology("h100:4"), 2.0)
    return [
        rounded([[plan.mesh, plan.rows_per_device, plan.remat, plan.step_seconds] for plan in plans]),
        report.ranking(plans).splitlines(),
    ]


@pytest.mark.parametrize("name", CASES)
def test_plans(name: str) -> None:
    assert plan_of(name) == json.loads(GOLDEN.read_text())[name]


def test_search() -> None:
    assert ranking() == json.loads(GOLDEN.read_text())["search"]


if __name__ == "__main__":
    print(json.dumps({**{name: plan_of(name) for name in CASES}, "search": ranking()}, indent=1))
