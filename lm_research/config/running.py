"""The keys of how a run goes: eval, checkpoint, mesh, logging, profile."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lm_research.common.documents import whole_number
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError, suggest

if TYPE_CHECKING:
    from lm_research.config.run import Config


def read_steps(text: str) -> tuple[int, int]:
    """FIRST-LAST; raises a ValueError for another text."""
    first, last = (whole_number(part) for part in text.partition("-")[::2])
    if first is None or last is None:
        raise ValueError("it is not a range of steps. Write FIRST-LAST, for example 10-13.")
    return first, last


def read_rules(text: str) -> dict[str, tuple[str, ...]]:
    """AXIS=PLACE, AXIS=PLACE+PLACE, ...; raises a ValueError for another text."""
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, places = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not AXIS=PLACE, as in vocab=fsdp or mlp=tensor+fsdp.")
        found[name] = tuple(places.split("+"))
    return found


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    every_steps: int | None = key(
        1000, "Steps between evaluations on held-out documents; none evaluates only at the end.", low=0
    )
    num_batches: int | None = key(None, "Batches of each evaluation; none reads all held-out examples once.", low=0)
    num_samples: int = key(4, "Samples or fill-mask examples shown after each evaluation.", low=0, high=1000)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    every_steps: int | None = key(1000, "Steps between checkpoints; none saves only by time and at the end.", low=0)
    every_minutes: float | None = key(
        15.0, "Minutes between checkpoints; none saves only by steps and at the end.", low=0.0, high=1e9
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
            "dp",
            "dp+context",
            "dp+tensor",
            "fsdp",
            "fsdp+context",
            "fsdp+tensor",
            "fsdp+context+tensor",
            "shard_map",
        ),
    )
    slices: int | None = key(
        None,
        "Slices (TPU pods joined by the data-center network) the devices are; none takes what is found.",
        low=0,
        high=2**20,
    )
    data: int | None = key(
        None, "Devices on the data axis (model copied); none leaves it to the preset.", low=0, high=2**20
    )
    fsdp: int | None = key(
        None,
        "Devices on the fsdp axis (parameters and optimizer sharded); none leaves it to the preset.",
        low=0,
        high=2**20,
    )
    context: int | None = key(
        None,
        "Devices on the context axis (each row's positions divided; ring attention); none leaves it to the preset.",
        low=0,
        high=2**20,
    )
    tensor: int | None = key(
        None,
        "Devices on the tensor axis (heads, feed-forward, vocabulary divided); none leaves it to the preset.",
        low=0,
        high=2**20,
    )
    rules: dict[str, tuple[str, ...]] | None = key(
        None,
        "Where axes of parameters lie, if not as usual (vocab, heads and mlp over tensor, embed over fsdp): for example "
        '{"vocab": ["fsdp", "tensor"], "embed": ["none"]}.',
        read=read_rules,
    )
    zero1: bool = key(
        False,
        "Divide the optimizer's moments over the data axis too (ZeRO-1); the result stays the same, memory falls.",
    )


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Section):
    every_steps: int = key(20, "Steps between lines of metrics.", low=1)
    trackers: tuple[str, ...] = key(
        ("tensorboard",),
        "Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas, or none.",
    )

    def check(self, config: Config) -> None:
        tracker_names(config)


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    steps: tuple[int, ...] | None = key(
        None,
        "FIRST-LAST: steps to trace with jax.profiler into WORKDIR/profile; none traces nothing.",
        low=1,
        read=read_steps,
    )

    def check(self, config: Config) -> None:
        profile_range(config)


def tracker_names(config: Config) -> tuple[str, ...]:
    """The trackers of logging.trackers, each once; raises a ConfigError for one that does not exist."""
    from lm_research.config.registries import TRACKERS  # which stands on the sections

    names = tuple(dict.fromkeys(config.logging.trackers))
    if not names:
        raise ConfigError(
            "logging.trackers is empty. Write one or several with commas, for example tensorboard,wandb; or none."
        )
    for name in names:
        if name != "none" and name not in TRACKERS:
            raise ConfigError(
                f"logging.trackers={','.join(names)} has {name!r}. {suggest(name, (*TRACKERS, 'none'))} Write one or several "
                "with commas, for example tensorboard,wandb."
            )
    if "none" in names and len(names) > 1:
        raise ConfigError(f"logging.trackers={','.join(names)} has none beside others. Leave one or the others out.")
    return () if names == ("none",) else names


def profile_range(config: Config) -> tuple[int, int] | None:
    """First and last step to trace (inclusive), or None.

    Raises:
      ConfigError: profile.steps is no range.
    """
    steps = config.profile.steps
    if steps is None:
        return None
    if len(steps) != 2 or not steps[0] <= steps[1]:
        raise ConfigError(
            f"profile.steps={'-'.join(map(str, steps))!r} is not a range of steps. Write FIRST-LAST, for example 10-13."
        )
    return steps[0], steps[1]
