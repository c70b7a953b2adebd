"""Sweeps: many runs of one config, chosen, run, resumed and compared as one study."""

from lm_research.sweeping.sweep import Choice, Sweep, Uniform

__all__ = ["Choice", "Sweep", "Uniform"]
