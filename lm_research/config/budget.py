"""The key train.budget: a limit on the time, compute or data of a run."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from lm_research.common.documents import short
from lm_research.config.keys import LIMITS
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config

_UNITS = {
    "s": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "d": ("seconds", 86400.0),
    "flops": ("flops", 1.0),
    "tokens": ("tokens", 1.0),
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limit of a run: an amount of `unit` (seconds, flops or tokens)."""

    amount: float
    unit: str


def parse_budget(config: Config) -> Budget | None:
    """Parse train.budget; None if it is not set.

    Raises:
      ConfigError: it is not an amount with a unit, or train.num_epochs is set too.
    """
    text = (config.train.budget or "").strip()
    if not text:
        return None
    if config.train.num_epochs:
        raise ConfigError(
            f"train.budget={text} and train.num_epochs={config.train.num_epochs:g} both set the number of steps. Set one: "
            "--config.train.num_epochs=none or --config.train.budget=."
        )
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e\+?[0-9]+)?)\s*([a-z]+)", text.lower())
    amount, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if unit not in _UNITS or not 0 < amount <= LIMITS[float][1]:
        raise ConfigError(
            f"train.budget={short(text)} is not an amount above 0 (and of 1e30 at most) with a unit ({', '.join(_UNITS)}). Examples: 90s, 30min, "
            "2h, 1e18flops, 2e9tokens."
        )
    kind, factor = _UNITS[unit]
    return Budget(amount * factor, kind)


def has_time_budget(config: Config) -> bool:
    """Return whether a time budget, rather than train.num_steps, ends the run."""
    found = parse_budget(config)
    return found is not None and found.unit == "seconds"
