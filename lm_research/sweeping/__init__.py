"""Sweeps: studies of many runs of one config, which are sampled, run, resumed and compared together."""

from lm_research.sweeping.sweep import Choice, Sweep, Uniform

__all__ = ["Choice", "Sweep", "Uniform"]
