"""The typed schema of a run.

A config file gives an `ml_collections.ConfigDict` made by `default_config()` and changed; `resolve` turns it
into the frozen `Config` of keys.py, or raises a `ConfigError` that names the key, the value and the fix.
`describe` prints every key (`--help_config`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from lm_research.common.documents import short, whole_number
from lm_research.common.paths import path_of
from lm_research.config.keys import (  # noqa: F401 - read from here
    CheckpointConfig,
    CleanConfig,
    Config,
    DataConfig,
    EvalConfig,
    LoggingConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ProfileConfig,
    ScheduleConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from lm_research.errors import ConfigError, suggest

TRACKERS = ("tensorboard", "wandb", "mlflow", "none")
MUP_OPTIMIZERS = ("adamw", "lion")  # whose updates have a size of their own, whatever the gradient's
# What a number of any key may be where its own bounds are wider: counters are int32, arithmetic on devices float32.
LIMITS: dict[type, tuple[float, float]] = {int: (-(2**31) + 1, 2**31 - 1), float: (-1e30, 1e30)}
LONGEST_TEXT = 2**20  # characters of a key that is a text: a list of 50,000 labels
TOKENS_PER_STEP = 2**28  # the largest batches in the literature have a quarter of it
_PATHS = (
    "data.source", "data.validation_source", "data.cache_dir", "data.tfds_dir", "tokenizer.path", "train.init_from", "task.train",
    "task.validation", "task.test",
)  # fmt: skip
_BUDGET_UNITS = {
    "s": ("seconds", 1.0), "min": ("seconds", 60.0), "h": ("seconds", 3600.0), "d": ("seconds", 86400.0),
    "flops": ("flops", 1.0), "tokens": ("tokens", 1.0),
}  # fmt: skip


@functools.cache
def walk() -> tuple[tuple[str, dataclasses.Field, type], ...]:
    """Every leaf key of the schema as (dotted name, field, type)."""
    return tuple(_walk())


def _walk() -> Iterator[tuple[str, dataclasses.Field, type]]:
    top = typing.get_type_hints(Config)
    for section in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(top[section.name]):
            yield section.name, section, top[section.name]
            continue
        hints = typing.get_type_hints(top[section.name])
        for field in dataclasses.fields(top[section.name]):
            yield f"{section.name}.{field.name}", field, hints[field.name]


def default_config() -> ConfigDict:
    """All keys with their defaults, for a config file to change. Types are enforced on assignment."""
    return ConfigDict(to_dict(Config())).lock()


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved config as plain nested dicts, the form in which it is stored."""
    return dataclasses.asdict(config)


def by_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a stored config, or of any nested dicts, by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= by_key(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def describe() -> str:
    """Text of `--help_config`: every key with type, default, choices and meaning."""
    lines = ["Keys of a run; change one with --config.KEY=VALUE.", ""]
    for name, field, kind in walk():
        choices = field.metadata["choices"]
        kind_text = " | ".join(choices) if choices else kind.__name__
        lines += [f"  {name}  ({kind_text}; default {field.default!r})", f"      {field.metadata['meaning']}"]
    return "\n".join(lines)


def check_key(name: str) -> None:
    """Raises a ConfigError with the nearest valid name when `name` (dotted) is not a key of the schema."""
    names = [valid for valid, _, _ in walk()]
    sections = {valid.split(".")[0] for valid in names if "." in valid}
    if name in names:
        return
    if name in sections:
        inside = [valid for valid in names if valid.startswith(name + ".")]
        raise ConfigError(f"config.{name} is a section, not a key. Set one of its keys: {', '.join(inside)}.")
    section, _, leaf = name.partition(".")
    inside = [valid for valid in names if valid.startswith(section + ".")]
    if leaf and inside:
        near = suggest(leaf, [valid.split(".", 1)[1] for valid in inside])
        raise ConfigError(f"config.{name} is not a key of this run: section {section!r} has no {leaf!r}. {near}")
    elsewhere = [valid for valid in names if valid.split(".")[-1] == (leaf or section)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = (
        f"Did you mean {(elsewhere or near)[0]!r}?"
        if elsewhere or near
        else f"Sections: {', '.join(sorted(sections))}; --help_config lists all keys."
    )
    raise ConfigError(f"config.{name} is not a key of this run. {hint}")


def check_value(name: str, value: Any, field: dataclasses.Field, kind: type) -> Any:
    """The value of a key, whole numbers made floats where it takes these; raises a ConfigError unless it is one that the key can have."""
    meaning = f"It means: {field.metadata['meaning']}"
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigError(
            f"config.{name} must be of type {kind.__name__}, got {short(value)} ({type(value).__name__}). {meaning}"
        )
    if kind is float and not math.isfinite(value if type(value) is float else 0):
        raise ConfigError(f"config.{name} must be a finite number, got {value!r}. {meaning}")
    choices, low, high = (field.metadata[k] for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ConfigError(f"config.{name} is {short(value)}. {suggest(short(value)[1:-1], choices)} {meaning}")
    if kind is str:
        _check_text(name, value)
    if kind in LIMITS:
        lowest, highest = LIMITS[kind]
        least, most = (lowest if low is None else low), (highest if high is None else high)
        if not least <= value <= most:
            bounds = f"at least {least}" if value < least else f"from {least} to {most}"
            raise ConfigError(f"config.{name} is {short(value)}; it must be {bounds}. {meaning}")
    return kind(value)


def _check_text(name: str, value: str) -> None:
    """Raises a ConfigError for a text that no key can have, or that is no path where the key is one."""
    wrong = next((i for i, letter in enumerate(value) if letter == "\0" or "\ud800" <= letter <= "\udfff"), None)
    if wrong is not None:
        what = "a NUL" if value[wrong] == "\0" else "no text in UTF-8"
        raise ConfigError(f"config.{name} is {short(value)}: character {wrong + 1} is {what}. Leave it out.")
    if len(value) > LONGEST_TEXT:
        raise ConfigError(f"config.{name} has {len(value):,} characters, and at most {LONGEST_TEXT:,} are read.")
    if (
        name in _PATHS and value.strip() and not value.startswith("lines:")
    ):  # which names two, looked at where they are opened
        path_of(value, f"config.{name}")


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks a (possibly partial) nested mapping and returns the frozen config.

    Args:
      values: sections to keys to values, as in a ConfigDict or a stored config.json; missing keys take defaults.

    Raises:
      ConfigError: an unknown key, a wrong type, a value out of range or an impossible combination.
    """
    values = values.to_dict() if isinstance(values, ConfigDict) else dict(values)
    given: dict[str, Any] = {}
    for section, content in values.items():
        if isinstance(content, Mapping):
            for leaf, value in content.items():
                check_key(f"{section}.{leaf}")
                given[f"{section}.{leaf}"] = value
        else:
            check_key(section)
            given[section] = content
    tree: dict[str, Any] = {}
    for name, field, kind in walk():
        section, _, leaf = name.rpartition(".")
        value = check_value(name, given.get(name, field.default), field, kind)
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    types = typing.get_type_hints(Config)
    config = Config(**{k: types[k](**v) if isinstance(v, dict) else v for k, v in tree.items()})
    _check_combinations(config)
    return config


def _check_combinations(config: Config) -> None:
    model, train = config.model, config.train
    if model.hidden_size % model.num_heads and not model.head_size:
        raise ConfigError(
            f"model.hidden_size={model.hidden_size} is not a multiple of model.num_heads={model.num_heads} "
            f"(remainder {model.hidden_size % model.num_heads}). Each head needs the same width; change one of them."
        )
    if model.num_heads % (model.num_kv_heads or 1):
        raise ConfigError(
            f"model.num_heads={model.num_heads} is not a multiple of model.num_kv_heads={model.num_kv_heads}: each head of "
            "keys and values serves a group of query heads, all of one size. Change one of them."
        )
    if model.mup_base_width and config.optimizer.name not in MUP_OPTIMIZERS:
        raise ConfigError(
            f"model.mup_base_width={model.mup_base_width} scales rates as {' and '.join(MUP_OPTIMIZERS)} need it, but optimizer.name="
            f"{config.optimizer.name}. Use one of those, or set --config.model.mup_base_width=0."
        )
    if model.mup_base_width and config.objective.name == "replaced_token":
        raise ConfigError(
            f"model.mup_base_width={model.mup_base_width} scales one model by its width, and objective.name=replaced_token trains two of "
            "different widths. Use another objective, or set --config.model.mup_base_width=0."
        )
    if config.data.max_length > model.max_length:
        raise ConfigError(
            f"data.max_length={config.data.max_length} is longer than model.max_length={model.max_length}, the positions "
            f"the model has. Shorten the examples or set --config.model.max_length={config.data.max_length}."
        )
    if (tokens := train.batch_size * config.data.max_length) > TOKENS_PER_STEP:
        raise ConfigError(
            f"train.batch_size={train.batch_size} rows of data.max_length={config.data.max_length} are {tokens:,} tokens a step, of which at "
            f"most {TOKENS_PER_STEP:,} are made. Lower one of them."
        )
    if train.batch_size % train.accumulation_steps and not train.batch_per_device:
        raise ConfigError(
            f"train.batch_size={train.batch_size} cannot be divided into train.accumulation_steps="
            f"{train.accumulation_steps} equal micro-batches. Use a multiple of {train.accumulation_steps}."
        )
    if config.schedule.warmup_steps and config.schedule.warmup_ratio:
        raise ConfigError(
            f"schedule.warmup_steps={config.schedule.warmup_steps} and schedule.warmup_ratio="
            f"{config.schedule.warmup_ratio} are both set. Set one of them to 0."
        )
    if not train.num_epochs and not train.budget and config.schedule.warmup_steps > train.num_steps:
        raise ConfigError(
            f"schedule.warmup_steps={config.schedule.warmup_steps} is longer than train.num_steps={train.num_steps}: the "
            "peak learning rate would never be reached. Shorten the warm-up or train longer."
        )
    if model.vocab_size and model.vocab_size < config.tokenizer.vocab_size and not config.tokenizer.path:
        raise ConfigError(
            f"tokenizer.vocab_size={config.tokenizer.vocab_size} is larger than model.vocab_size={model.vocab_size}: some tokens "
            "would have no embedding. Set model.vocab_size=0 to follow the tokenizer."
        )
    profile_range(config)
    tracker_names(config)
    budget(config)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run may spend: an amount of `unit` (seconds, flops or tokens)."""

    amount: float
    unit: str


def budget(config: Config) -> Budget | None:
    """train.budget, or None where the run goes by steps; raises a ConfigError if it is not an amount with a unit."""
    text = config.train.budget.strip()
    if not text:
        return None
    if config.train.num_epochs:
        raise ConfigError(
            f"train.budget={text} and train.num_epochs={config.train.num_epochs:g} both set the number of steps. Set one: "
            "--config.train.num_epochs=0 or --config.train.budget=."
        )
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e\+?[0-9]+)?)\s*([a-z]+)", text.lower())
    amount, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if unit not in _BUDGET_UNITS or not 0 < amount <= LIMITS[float][1]:
        raise ConfigError(
            f"train.budget={short(text)} is not an amount above 0 (and of 1e30 at most) with a unit ({', '.join(_BUDGET_UNITS)}). Write for example 90s, 30min, "
            "2h, 1e18flops or 2e9tokens."
        )
    kind, factor = _BUDGET_UNITS[unit]
    return Budget(amount * factor, kind)


def timed(config: Config) -> bool:
    """Whether a budget of time, and not train.num_steps, ends the run."""
    found = budget(config)
    return found is not None and found.unit == "seconds"


def tracker_names(config: Config) -> tuple[str, ...]:
    """The trackers of logging.trackers, each once; raises a ConfigError for one that does not exist."""
    names = tuple(dict.fromkeys(name.strip() for name in config.logging.trackers.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"logging.trackers={config.logging.trackers!r} has {name!r}. {suggest(name, TRACKERS)} Write one or several "
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


def replace(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some keys changed, checked again: `replace(config, train=dict(num_steps=10))`."""
    values = to_dict(config)
    for section, changes in sections.items():
        values[section] = {**values[section], **changes} if isinstance(changes, Mapping) else changes
    return resolve(values)


def dumps(config: Config) -> str:
    """The config as the JSON text stored in run directories and checkpoints."""
    return json.dumps(to_dict(config), indent=2) + "\n"
