"""Trials of a study, read from study.json, and the importance of each parameter.

study.json: {"metric", "direction": "minimize" or "maximize", "digest", "trials": [{"number", "params": {key: value}, "value",
"state", "run": directory of the trial's run below the study's, "reason": why it failed}]}.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

import numpy as np
from msgspec import Meta
from scipy.stats import rankdata

from lm_research.common.documents import Count, read_json, short
from lm_research.errors import DataError

FILE = "study.json"
_FIX = "So it cannot be read as a study: it must have metric, direction and trials, each with number, params, value and state; restore it, or run the sweep again."
_Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Trial(TypedDict, total=False):
    number: Required[Count]
    params: Required[dict[str, bool | _Whole | float | str | None]]
    value: _Whole | float | None
    state: Required[str]
    run: str
    reason: str


class _Content(TypedDict, total=False):
    metric: str
    direction: str
    digest: str
    trials: Required[list[_Trial]]


@dataclasses.dataclass(frozen=True)
class Study:
    """A sweep, finished or not.

    Attributes:
      directory: directory of study.json.
      metric: the metric that is optimized.
      maximize: whether larger is better.
      digest: digest of the sweep's definition.
      trials: trials as in study.json, ordered by number.
    """

    directory: Path
    metric: str
    maximize: bool
    digest: str
    trials: list[dict[str, Any]]

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters of trials."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial["params"]))

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Complete trials with a finite value; values of other trials are of earlier steps."""
        return [trial for trial in self.trials if _is_number(trial["value"]) and trial["state"] == "complete"]

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The measured trials, best first."""
        return sorted(self.measured, key=lambda trial: -trial["value"] if self.maximize else trial["value"])

    @functools.cached_property
    def varied(self) -> list[str]:
        """Parameters with several values, without the seed and without those determined by an earlier parameter."""
        found: dict[tuple[int, ...], str] = {}
        begun = [trial["params"] for trial in self.trials if trial["params"]]
        for key in self.parameters:
            values = [json.dumps(params.get(key)) for params in begun]
            if key != "seed" and len(set(values)) > 1:
                found.setdefault(tuple(map(values.index, values)), key)  # equal tuples group the trials equally
        return list(found.values())

    def label(self, trial: dict[str, Any]) -> str:
        """Name a trial as in `trial 3 (muon, 0.02)`: its number and the values of its first three varied parameters."""
        values = [trial["params"][key] for key in self.varied[:3] if key in trial["params"]]
        text = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"trial {trial['number']}" + (f" ({text})" if text else "")

    def best_so_far(self) -> list[tuple[int, float]]:
        """Return (number, best value so far) of the measured trials."""
        pick = max if self.maximize else min
        values = [trial["value"] for trial in self.measured]
        return [(trial["number"], pick(values[: i + 1])) for i, trial in enumerate(self.measured)]

    def importance(self) -> dict[str, float]:
        """Return the association of each parameter with the value, from 0 to 1, the largest first.

        For numbers it is the absolute value of Spearman's rank correlation; for names, the correlation ratio of the value's
        ranks (the root of the fraction of their variance that is between the names). Parameters with one value, or in fewer
        than three trials, are left out.
        """
        found = {}
        for key in self.parameters:
            pairs = [(trial["params"][key], trial["value"]) for trial in self.measured if key in trial["params"]]
            if len(pairs) < 3 or len({json.dumps(value) for value, _ in pairs}) < 2:
                continue
            ranks = rankdata([value for _, value in pairs])
            if ranks.std() == 0:
                continue
            settings = [value for value, _ in pairs]
            if all(map(_is_number, settings)):
                found[key] = abs(float(np.corrcoef(rankdata(settings), ranks)[0, 1]))
            else:
                names = np.array([json.dumps(value) for value in settings])
                groups = [ranks[names == name] for name in set(names)]
                between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups)
                found[key] = math.sqrt(float(between / (len(ranks) * ranks.var())))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def read_study(directory: Path) -> Study:
    """Read DIRECTORY/study.json.

    Raises:
      DataError: it cannot be read, or a field is missing or has the wrong type.
    """
    path = directory / FILE
    content = read_json(path, _Content, fix=_FIX)
    direction = content.get("direction", "minimize").lower()
    if direction not in ("minimize", "maximize"):
        raise DataError(f"{path}: direction {short(direction)} is neither minimize nor maximize. {_FIX}")
    trials = [{"value": None, **trial, "state": trial["state"].lower()} for trial in content["trials"]]
    return Study(
        directory,
        content.get("metric", "value"),
        direction == "maximize",
        content.get("digest", ""),
        sorted(trials, key=lambda trial: trial["number"]),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
