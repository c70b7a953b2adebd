"""Run directories and studies written by hand, as train and a sweep leave them, for tests of the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from lm_research.config import default_config

LINES: list[dict[str, Any]] = [
    {
        "step": 10,
        "loss_nats": 5.25,
        "grad_norm": 1.5,
        "learning_rate": 0.001,
        "tokens_per_second": 1000.0,
        "flops_per_second": 4e6,
        "step_seconds": 0.5,
        "mfu": 0.2,
        "goodput": 0.5,
    },
    {
        "step": 20,
        "loss_nats": 4.500000000000001,
        "grad_norm": math.nan,
        "learning_rate": 1 / 3,
        "tokens_per_second": 2000.0,
        "flops_per_second": 8e6,
        "step_seconds": 0.25,
        "mfu": 0.4,
        "goodput": 0.6,
    },
    {"step": 15, "eval_loss_nats": 4.9, "eval_perplexity": math.inf, "eval_seconds": 1.0},
    {"step": 25, "eval_loss_nats": 4.75, "eval_perplexity": 115.58, "eval_seconds": 1.5},
]
LOG = """\
2026-01-31 12:00:00 held-out after step 15: loss nats 4.9 (unigram: 5.903 nats)
2026-01-31 12:00:00   | Abraham was [old]
2026-01-31 12:00:00   |     -> <b>young</b> 7%
2026-01-31 12:00:01 step 20/25
2026-01-31 12:00:02 held-out after step 25: loss nats 4.75 (unigram: 5.903 nats)
2026-01-31 12:00:02   | Abraham was [old]
2026-01-31 12:00:02   |     -> old 9%
2026-01-31 12:00:03 finished
"""
LIFE = {"begin": 0.0, "first": 0, "end": 100.0, "last": 25}
SECONDS = {"steps": 50.0, "start": 20.0, "compile": 10.0, "data": 5.0, "eval": 10.0, "checkpoint": 5.0}


def write_run(
    directory: Path,
    lines: list[dict[str, Any]] = LINES,
    status: str | None = "finished",
    parameters: int = 1000,
    **changes: Any,
) -> Path:
    """A run; `changes` are config keys with __ for the dot. Without a status it has no summary.json."""
    directory.mkdir(parents=True)
    config = default_config().to_dict()
    for name, value in changes.items():
        section, _, leaf = name.partition("__")
        if leaf:
            config[section][leaf] = value
        else:
            config[section] = value
    start = {
        "time": "2026-01-31T12:00:00+00:00",
        "command": ["python", "-m", "lm_research.train", "--workdir=a folder"],
        "versions": {"jax": "0.10.2"},
        "git_commit": "abc123",
        "parameters": parameters,
    }
    summary = {"status": status, "step": 25, "digests": {"parameters": "ab12", "optimizer": "cd34"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "environment.json").write_text(json.dumps([start]))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "log.txt").write_text(LOG)
    (directory / "time.json").write_text(json.dumps([{**LIFE, "seconds": SECONDS}]))
    if status:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def final(loss: float, tokens_per_second: float = 1000.0) -> list[dict[str, Any]]:
    """LINES with another last held-out loss and speed."""
    lines = [dict(line) for line in LINES]
    lines[-1]["eval_loss_nats"] = loss
    for line in lines[:2]:
        line["tokens_per_second"] = tokens_per_second
    return lines


def write_study(directory: Path, trials: list[dict[str, Any]], **more: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    content = {"metric": "eval_loss_nats", "direction": "minimize", "digest": "d1", "trials": trials, **more}
    (directory / "study.json").write_text(json.dumps(content))
    return directory


def data_of(page: Path) -> dict[str, Any]:
    """The JSON that a page's charts draw."""
    html = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def lines_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl from a page's tables, by step; NaN and infinities are strings there."""
    back = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    lines = [
        {
            key: back.get(values[i], values[i]) if isinstance(values[i], str) else values[i]
            for key, values in table.items()
        }
        for table in (table["columns"] for table in run["tables"])
        for i in range(len(table["step"]))
    ]
    return sorted(lines, key=lambda line: (line["step"], "eval_loss_nats" in line))
