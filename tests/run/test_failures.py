"""Failures that end a run: what is saved, and what the message names."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest

from lm_research.errors import DataError, NonFiniteLoss
from lm_research.parallel import exchange
from lm_research.run import failures


class Checkpoints:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def save(self, state: Any) -> None:
        self.calls.append(f"save {int(state['halted'])}")

    def close(self) -> None:
        self.calls.append("close")

    def trust_all(self) -> None:
        self.calls.append("trust")

    def distrust(self) -> str:
        self.calls.append("distrust")
        return "Checkpoint 6 was moved aside."


@pytest.mark.parametrize(("process", "name"), [(0, "step_8.npz"), (3, "step_8_process_3.npz")])
def test_a_loss_that_is_not_finite(
    process: int, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eighth step has the batch of number 7, counted from 0; checkpoint 7 is the state before it."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(failures, "summarize", lambda state, *rest: checkpoints.calls.append(f"summary {rest[1]}"))
    checkpoints = Checkpoints()
    failures.raise_if_halted({"halted": np.int32(-1)}, None, tmp_path, checkpoints)
    assert checkpoints.calls == [] and not list(tmp_path.iterdir())
    for step, saved in ((7, name), (0, name.replace("8", "1"))):
        with pytest.raises(NonFiniteLoss, match=rf"Step {step + 1} has .*checkpoint {step}, its batch in .*{saved}"):
            failures.raise_if_halted(
                {"halted": np.int32(step)}, lambda step: {"tokens_BL": np.full((1, 2), step)}, tmp_path, checkpoints
            )
        with np.load(tmp_path / "nonfinite" / saved) as batch:
            assert batch["tokens_BL"].tolist() == [[step, step]]
    assert checkpoints.calls == ["save 7", "close", "summary nonfinite", "save 0", "close", "summary nonfinite"]


@pytest.mark.parametrize(
    ("own", "others", "pending", "calls", "message"),
    [
        (None, True, False, ["trust"], None),
        (None, True, True, [], None),
        (None, False, False, ["distrust"], "Another process has found damage .* Checkpoint 6 was moved aside"),
        ("Row 3 is damaged.", True, False, ["distrust"], "^Row 3 is damaged. Checkpoint 6 was moved aside.$"),
    ],
)
def test_damaged_text(
    own: str | None, others: bool, pending: bool, calls: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are trusted once all text is verified in all processes."""
    monkeypatch.setattr(exchange, "all_processes", lambda well: well and others)
    checkpoints = Checkpoints()
    verification = types.SimpleNamespace(damage=own and DataError(own), pending=pending)
    if message is None:
        failures.raise_if_damaged(verification, checkpoints)
    else:
        with pytest.raises(DataError, match=message):
            failures.raise_if_damaged(verification, checkpoints)
    assert checkpoints.calls == calls
