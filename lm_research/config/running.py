"""The keys of how a run goes: eval, checkpoint, mesh, logging, profile."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lm_research.common.documents import short, whole_number
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError, suggest

if TYPE_CHECKING:
    from lm_research.config.run import Config


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    every_steps: int = key(1000, "Steps between evaluations on held-out documents; 0 evaluates only at the end.", low=0)
    num_batches: int = key(0, "Batches of each evaluation; 0 reads all held-out examples once.", low=0)
    num_samples: int = key(4, "Samples or fill-mask examples shown after each evaluation.", low=0, high=1000)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    every_steps: int = key(1000, "Steps between checkpoints; 0 saves only by time and at the end.", low=0)
    every_minutes: float = key(
        15.0, "Minutes between checkpoints; 0 saves only by steps and at the end.", low=0.0, high=1e9
    )
    keep: int = key(2, "Newest checkpoints kept.", low=1)
    keep_best: int = key(1, "Checkpoints with the lowest evaluation loss kept as well.", low=0)
    on_damage: str = key(
        "fallback",
        "A newest checkpoint that is damaged: go on from the newest whole one, told in the log, and keep the damaged one in "
        "checkpoints/damaged; or stop.",
        choices=("fallback", "stop"),
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    preset: str = key(
        "dp",
        "What takes the devices left over: dp copies the model, fsdp shards it; +context and +tensor give those axes 4 "
        "devices (2, 1) where no number is given; shard_map is dp as a program per device, what pmap was.",
        choices=(
            "dp", "dp+context", "dp+tensor", "fsdp", "fsdp+context", "fsdp+tensor", "fsdp+context+tensor", "shard_map",
        ),
    )  # fmt: skip
    slices: int = key(
        0,
        "Slices (TPU pods joined by the data-centre network) the devices are; 0 takes what is found.",
        low=0,
        high=2**20,
    )
    data: int = key(0, "Devices on the data axis (model copied); 0 leaves it to the preset.", low=0, high=2**20)
    fsdp: int = key(
        0, "Devices on the fsdp axis (parameters and optimizer sharded); 0 leaves it to the preset.", low=0, high=2**20
    )
    context: int = key(
        0,
        "Devices on the context axis (each row's positions divided; ring attention); 0 leaves it to the preset.",
        low=0,
        high=2**20,
    )
    tensor: int = key(
        0,
        "Devices on the tensor axis (heads, feed-forward, vocabulary divided); 0 leaves it to the preset.",
        low=0,
        high=2**20,
    )
    rules: str = key(
        "",
        "Where axes of parameters lie, if not as usual (vocab=tensor, heads=tensor, mlp=tensor, embed=fsdp): for example "
        "vocab=fsdp+tensor,embed=none.",
    )
    zero1: bool = key(
        False,
        "Divide the optimizer's moments over the data axis too (ZeRO-1); the result stays the same, memory falls.",
    )


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Section):
    every_steps: int = key(20, "Steps between lines of metrics.", low=1)
    trackers: str = key(
        "tensorboard",
        "Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas, or none.",
    )

    def check(self, config: Config) -> None:
        tracker_names(config)


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    steps: str = key("", "FIRST-LAST: steps to trace with jax.profiler into WORKDIR/profile; empty traces none.")

    def check(self, config: Config) -> None:
        profile_range(config)


def tracker_names(config: Config) -> tuple[str, ...]:
    """The trackers of logging.trackers, each once; raises a ConfigError for one that does not exist."""
    from lm_research.config.registries import TRACKERS  # which stands on the sections

    names = tuple(dict.fromkeys(name.strip() for name in config.logging.trackers.split(",")))
    for name in names:
        if name != "none" and name not in TRACKERS:
            raise ConfigError(
                f"logging.trackers={config.logging.trackers!r} has {name!r}. {suggest(name, (*TRACKERS, 'none'))} Write one or several "
                "with commas, for example tensorboard,wandb."
            )
    if "none" in names and len(names) > 1:
        raise ConfigError(
            f"logging.trackers={config.logging.trackers!r} has none beside others. Leave one or the others out."
        )
    return () if names == ("none",) else names


def profile_range(config: Config) -> tuple[int, int] | None:
    """First and last step to trace (inclusive), or None.

    Raises:
      ConfigError: profile.steps is not FIRST-LAST.
    """
    text = config.profile.steps
    if not text:
        return None
    first, last = (whole_number(part) for part in text.partition("-")[::2])
    if first is None or last is None or not 1 <= first <= last:
        raise ConfigError(f"profile.steps={short(text)} is not a range of steps. Write FIRST-LAST, for example 10-13.")
    return first, last
