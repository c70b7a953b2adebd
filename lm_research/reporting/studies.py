"""A study's trials: read from study.json, and what they say about each parameter.

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
_FIX = "So it cannot be read as a study: it should hold metric, direction and trials, each with number, params, value and state; restore it, or let the sweep write it again."
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
    """A sweep as far as it has come.

    Attributes:
      trials: as in study.json, by number.
    """

    directory: Path
    metric: str
    maximize: bool
    digest: str
    trials: list[dict[str, Any]]

    @property
    def parameters(self) -> list[str]:
        return list(dict.fromkeys(key for trial in self.trials for key in trial["params"]))

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Trials with a finite value that ran to their end; the values of others are of earlier steps."""
        return [trial for trial in self.trials if _is_number(trial["value"]) and trial["state"] == "complete"]

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The measured trials, the best first."""
        return sorted(self.measured, key=lambda trial: -trial["value"] if self.maximize else trial["value"])

    @functools.cached_property
    def varied(self) -> list[str]:
        """Parameters that tell trials apart: of several values, but for the seed and for those that go with an earlier one."""
        found: dict[tuple[int, ...], str] = {}
        begun = [trial["params"] for trial in self.trials if trial["params"]]
        for key in self.parameters:
            given = [json.dumps(params.get(key)) for params in begun]
            if key != "seed" and len(set(given)) > 1:
                found.setdefault(tuple(map(given.index, given)), key)  # equal where the same trials have equal values
        return list(found.values())

    def label(self, trial: dict[str, Any]) -> str:
        """Name a trial as `trial 3 (muon, 0.02)`: its number and its values of what varies, of the first three at most."""
        values = [trial["params"][key] for key in self.varied[:3] if key in trial["params"]]
        told = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"trial {trial['number']}" + (f" ({told})" if told else "")

    def best_so_far(self) -> list[tuple[int, float]]:
        """(trial's number, best value up to it) of the measured trials."""
        pick = max if self.maximize else min
        values = [trial["value"] for trial in self.measured]
        return [(trial["number"], pick(values[: i + 1])) for i, trial in enumerate(self.measured)]

    def importance(self) -> dict[str, float]:
        """How much the order of the trials follows each parameter, 0 to 1, the largest first.

        Of numbers Spearman's rank correlation with the value, without its sign; of names the correlation ratio of the value's ranks
        (the root of the share of their variance that lies between the names). Parameters of one value, or of fewer than
        three trials, are left out.
        """
        found = {}
        for key in self.parameters:
            pairs = [(trial["params"][key], trial["value"]) for trial in self.measured if key in trial["params"]]
            if len(pairs) < 3 or len({json.dumps(value) for value, _ in pairs}) < 2:
                continue
            ranks = rankdata([value for _, value in pairs])
            if ranks.std() == 0:
                continue
            given = [value for value, _ in pairs]
            if all(map(_is_number, given)):
                found[key] = abs(float(np.corrcoef(rankdata(given), ranks)[0, 1]))
            else:
                names = np.array([json.dumps(value) for value in given])
                groups = [ranks[names == name] for name in set(names)]
                between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups)
                found[key] = math.sqrt(float(between / (len(ranks) * ranks.var())))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def read_study(directory: Path) -> Study:
    """Reads DIRECTORY/study.json.

    Raises:
      DataError: it cannot be read, or a field is missing or of another type.
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
