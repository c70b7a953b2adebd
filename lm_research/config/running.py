"""The keys of the sections eval, checkpoint, mesh, xla, logging and profile."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from typing_extensions import override

from lm_research.common.documents import whole_number
from lm_research.common.paths import is_remote
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError, suggest

if TYPE_CHECKING:
    from lm_research.config.run import Config


def read_steps(text: str) -> tuple[int, int]:
    """Parse FIRST-LAST; raise a ValueError if the text has another form."""
    first, last = (whole_number(part) for part in text.partition("-")[::2])
    if first is None or last is None:
        raise ValueError("it is not a range of steps. Write FIRST-LAST, for example 10-13.")
    return first, last


def read_rules(text: str) -> dict[str, tuple[str, ...]]:
    """Parse AXIS=MESH_AXIS, AXIS=MESH_AXIS+MESH_AXIS, ...; raise a ValueError if the text has another form."""
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, places = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not AXIS=MESH_AXIS, as in vocab=fsdp or mlp=tensor+fsdp.")
        found[name] = tuple(places.split("+"))
    return found


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    """Keys of the section eval: evaluations during training."""

    every_steps: int | None = key(
        1000, "Steps between evaluations on held-out data; None evaluates only at the end.", low=0
    )
    num_batches: int | None = key(None, "Batches per evaluation; None uses all held-out examples once.", low=0)
    num_samples: int = key(
        4, "Number of samples or fill-mask examples to show after each evaluation.", low=0, high=1000
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """Keys of the section checkpoint: when to save and what to keep."""

    every_steps: int | None = key(1000, "Steps between checkpoints; None saves only by time and at the end.", low=0)
    every_minutes: float | None = key(
        15.0, "Minutes between checkpoints; None saves only by steps and at the end.", low=0.0, high=1e9
    )
    keep: int = key(2, "Number of most recent checkpoints to keep.", low=1)
    keep_best: int = key(1, "Number of checkpoints with the lowest evaluation loss to keep in addition.", low=0)
    local_every_steps: int | None = key(
        None,
        "Steps between emergency checkpoints on the hosts themselves, which a restart uses if they are newer; None writes none.",
        low=0,
    )
    local_directory: str = key(
        "/dev/shm/lm_research",
        "Directory of the emergency checkpoints on each host, in memory (/dev/shm/NAME) or on a local disk; needs up to four times "
        "a process's part of the state.",
        path=True,
    )
    on_damage: str = key(
        "fallback",
        "What to do if the newest checkpoint is damaged: resume from the newest intact one, with a warning in the "
        "log, and move the damaged one to checkpoints/damaged; or stop.",
        choices=("fallback", "stop"),
    )

    @override
    def check(self, config: Config) -> None:
        if is_remote(self.local_directory):
            raise ConfigError(
                f"config.checkpoint.local_directory={self.local_directory} is in a bucket. Give a directory in each host's memory or on its "
                "disk; the rarer checkpoints of checkpoint.every_steps are written to --workdir, which may be in a bucket."
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Keys of the section mesh: how devices share the work."""

    preset: str = key(
        "dp",
        "How to use the devices that no axis claims: dp replicates the model, fsdp shards it. +context and "
        "+tensor give those axes 4 devices (2 or 1 if 4 do not divide the devices) where no size is set. "
        "shard_map is dp written as one program per device, as pmap was.",
        choices=tuple("dp dp+context dp+tensor fsdp fsdp+context fsdp+tensor fsdp+context+tensor shard_map".split()),
    )
    slices: int | None = key(
        None,
        "Number of slices (TPU pods joined by the data-center network); None detects it.",
        low=0,
        high=2**20,
    )
    data: int | None = key(
        None, "Devices on the data axis (replicates the model); None leaves it to mesh.preset.", low=0, high=2**20
    )
    fsdp: int | None = key(
        None,
        "Devices on the fsdp axis (shards parameters and optimizer state); None leaves it to mesh.preset.",
        low=0,
        high=2**20,
    )
    expert: int | None = key(
        None,
        "Devices on the expert axis (divides the batch, and the experts of layers that have some); None is 1.",
        low=0,
        high=2**20,
    )
    context: int | None = key(
        None,
        "Devices on the context axis (divides the positions of each sequence; ring attention); None leaves it to "
        "mesh.preset.",
        low=0,
        high=2**20,
    )
    tensor: int | None = key(
        None,
        "Devices on the tensor axis (divides heads, feed-forward and vocabulary); None leaves it to mesh.preset.",
        low=0,
        high=2**20,
    )
    rules: dict[str, tuple[str, ...]] | None = key(
        None,
        "Mesh axes that shard each parameter axis, where they differ from the default (vocab, heads and mlp over "
        'tensor, embed over fsdp, expert over expert), for example {"vocab": ["fsdp", "tensor"], "embed": ["none"]}.',
        read=read_rules,
    )
    zero1: bool = key(
        False,
        "Shard the optimizer's moments over the data axis too (ZeRO-1), which saves memory and does not change "
        "the result.",
    )


@dataclasses.dataclass(frozen=True)
class XlaConfig(Section):
    """Keys of the section xla: the compiler."""

    flags: tuple[str, ...] = key(
        (),
        "Options of the XLA compiler for the training and evaluation steps, NAME=VALUE, separated by commas. They replace or "
        "extend those that the platform sets (docs/performance.md); the value default restores the compiler's own.",
    )


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Section):
    """Keys of the section logging."""

    every_steps: int = key(20, "Steps between logged metrics.", low=1)
    trackers: tuple[str, ...] = key(
        ("tensorboard",),
        "Where to log metrics in addition to metrics.jsonl: tensorboard, wandb, mlflow, several separated by "
        "commas, or none.",
    )

    @override
    def check(self, config: Config) -> None:
        tracker_names(config)


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    """Keys of the section profile."""

    steps: tuple[int, ...] | None = key(
        None,
        "Steps to trace with jax.profiler into WORKDIR/profile, as FIRST-LAST; None disables tracing.",
        low=1,
        read=read_steps,
    )

    @override
    def check(self, config: Config) -> None:
        profile_range(config)


def tracker_names(config: Config) -> tuple[str, ...]:
    """Return the trackers of logging.trackers without duplicates; raise a ConfigError if one does not exist."""
    from lm_research.config.registries import TRACKERS  # imports the sections

    names = tuple(dict.fromkeys(config.logging.trackers))
    if not names:
        raise ConfigError(
            "logging.trackers is empty. Name one or several, separated by commas, for example tensorboard,wandb, or write none."
        )
    for name in names:
        if name != "none" and name not in TRACKERS:
            raise ConfigError(
                f"logging.trackers={','.join(names)} has {name!r}. {suggest(name, (*TRACKERS, 'none'))} Name one or several, "
                "separated by commas, for example tensorboard,wandb."
            )
    if "none" in names and len(names) > 1:
        raise ConfigError(
            f"logging.trackers={','.join(names)} combines none with trackers. Remove none or the trackers."
        )
    return () if names == ("none",) else names


def profile_range(config: Config) -> tuple[int, int] | None:
    """Return the first and last step to trace (inclusive), or None.

    Raises:
      ConfigError: profile.steps is not a range.
    """
    steps = config.profile.steps
    if steps is None:
        return None
    if len(steps) != 2 or not steps[0] <= steps[1]:
        raise ConfigError(
            f"profile.steps={'-'.join(map(str, steps))!r} is not a range of steps. Use the form FIRST-LAST, for example 10-13."
        )
    return steps[0], steps[1]
