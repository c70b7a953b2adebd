"""Weights & Biases."""

from __future__ import annotations

import html
import os
import secrets

from typing_extensions import override

from lm_research.run.trackers.base import CLOSE_SECONDS, TRACKERS, TrackedRun, Tracker, TrackerIds


@TRACKERS.register("wandb")
class WeightsAndBiases(Tracker):
    """One run at Weights & Biases, or, with WANDB_MODE=offline, in WORKDIR/wandb for `wandb sync`.

    WANDB_API_KEY (or `wandb login`), WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME and its other variables apply.
    """

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        ids = TrackerIds(run.workdir)
        # Stored before the run is made, so that after a crash at any point the next process finds the same run.
        run_id = ids.get("wandb") or ids.put("wandb", secrets.token_hex(8))
        # `console`: do not capture the run's output. `login_timeout`: nobody can answer a prompt for a key.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, login_timeout=1, finish_timeout=CLOSE_SECONDS / 2
        )
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lm_research",
            name=os.environ.get("WANDB_NAME") or run.workdir.absolute().name,
            id=run_id,
            resume="allow",
            dir=str(run.workdir),
            config=dict(run.config),
            settings=settings,
        )
        # Its own step counter cannot go back, but a killed run repeats steps, so "step" is an ordinary metric.
        self._run.define_metric("*", step_metric="step")

    @override
    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    @override
    def write_text(self, step: int, name: str, text: str) -> None:
        self._run.log({"step": step, name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")})

    @override
    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
