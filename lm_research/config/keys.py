"""Keys of the config: type, default, meaning and valid values.

Sections are frozen dataclasses whose fields are made by `key(...)`. Types of values are int, float, bool and str; `X | None`, where None is
"not set"; `tuple[X, ...]`; `dict[str, X]`, where X may also be a dataclass of such fields; and unions of these.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from lm_research.common.documents import json_value, short
from lm_research.common.paths import path_of
from lm_research.errors import ConfigError, suggest

if TYPE_CHECKING:
    from lm_research.config.run import Config

# Bounds of every number whose key sets none: counters are int32, arithmetic on devices is float32.
LIMITS: dict[type, tuple[float, float]] = {int: (-(2**31) + 1, 2**31 - 1), float: (-1e30, 1e30)}
LONGEST_TEXT = 2**20  # characters of a string value: enough for a list of 50,000 labels
_SWITCH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_WARNED: set[str] = set()  # keys with a deprecated spelling that has been reported
_NONE = (
    "none",
    "null",
    "None",
)  # on a command line; keys that can be a string accept only the first, and an empty string
_LIST = re.compile(r"\[\s*(\"|$)")  # the start of a JSON list of strings, unlike most regular expressions


def key(
    default: Any,
    meaning: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    path: bool = False,
    zero: bool = False,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """Define a config key, as the default of a dataclass field.

    Args:
      default: default value.
      meaning: description for `--help_config` and messages, a sentence or two.
      choices: valid values; of a tuple or dict, valid elements.
      low: smallest valid number, inclusive; LIMITS if None.
      high: largest valid number, inclusive; LIMITS if None.
      path: whether the value is a path, in which ~ is a home directory.
      zero: whether 0 and "" are ordinary values of a key that can be None. Otherwise they mean None, as in earlier versions.
      read: parses the short spelling of a tuple or dict, and raises a ValueError if it is malformed. Tuples of strings need none: their
        elements are separated by commas.
    """
    metadata = dict(meaning=meaning, choices=choices, low=low, high=high, path=path, zero=zero, read=read)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """Base class of config sections."""

    def __post_init__(self) -> None:
        """Parse the short spellings of tuples and dicts."""
        for name, key in keys_of(type(self), "").items():
            value = getattr(self, name)
            if isinstance(value, str) and str not in key.kinds:
                object.__setattr__(self, name, key.check(value))

    @classmethod
    def of(cls, settings: Section | None) -> Self:
        """Narrow the type of a section's settings to this class; raise a TypeError if they are of another."""
        if not isinstance(settings, cls):
            raise TypeError(f"expected {cls.__name__}, not {settings!r}")
        return settings

    def check(self, config: Config) -> None:
        """Raise a ConfigError if keys of this section conflict with each other or with those of other sections."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Key of a section, or of an element of a dict; `name` is the dotted name that users write. See `key` for the other fields."""

    name: str
    kind: Any
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    path: bool = False
    zero: bool = False
    read: Callable[[str], Any] | None = None

    @property
    def optional(self) -> bool:
        """Whether the value can be None."""
        return types.NoneType in self.kinds

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of its values: the members of a union."""
        is_union = typing.get_origin(self.kind) in (types.UnionType, typing.Union)
        return typing.get_args(self.kind) if is_union else (self.kind,)

    @property
    def has_keys(self) -> bool:
        """Whether its value is a dict, whose entries can be set separately."""
        return any(typing.get_origin(kind) is dict for kind in self.kinds)

    def check(self, value: Any) -> Any:
        """Convert a value to the key's type: integers to floats, lists to tuples, 0 and "" to None if the key can be None.

        Raises:
          ConfigError: the value is not valid for this key.
        """
        if self.optional and (value is None or (not self.zero and not isinstance(value, bool) and not value)):
            return None
        if isinstance(value, str) and str not in self.kinds:
            value = self._read(value)
        found = [kind for kind in self.kinds if _fits(value, kind)]
        if not found:
            raise ConfigError(
                f"config.{self.name} must be of type {self.spelled}, got {short(value)} ({type(value).__name__}). {self.explanation}"
            )
        return self._convert(value, found[0])

    def parse(self, text: str) -> Any:
        """Parse a value from the command line; raise a ConfigError if it is not valid."""
        is_none = text in (_NONE[:1] if str in self.kinds else _NONE)
        if self.optional and (is_none or (not text and not self.zero)):
            return None
        for kind in self.kinds:
            if kind is bool and text.lower() in _SWITCH:
                return self.check(_SWITCH[text.lower()])
            if kind in (int, float):
                try:
                    return self.check(int(text, 0) if kind is int and text.lower().startswith("0x") else kind(text))
                except ValueError:
                    continue
        if any(typing.get_origin(kind) or dataclasses.is_dataclass(kind) for kind in self.kinds) and (
            text[:1] in ("[", "{") or text == "null"
        ):
            try:
                return self.check(json_value(text))
            except ValueError as error:
                if tuple[str, ...] not in self.kinds or self.read or _LIST.match(text):
                    raise ConfigError(
                        f"--config.{self.name}={text[:60]} is not JSON: {error}. {self.explanation}"
                    ) from error
        if str in self.kinds or self.read or tuple[str, ...] in self.kinds:
            return self.check(text)
        raise ConfigError(
            f"--config.{self.name}={text[:60]}: {short(text)} is not {self._expected(text)} {self.explanation}"
        )

    def at(self, name: str) -> Key:
        """Return the key of one entry of its dict, NAME or NAME.KEY; raise a ConfigError if no such entry can exist."""
        first, _, rest = name.partition(".")
        found = self._entry(first)
        if not rest:
            return found
        if found.has_keys:
            return found.at(rest)
        if not dataclasses.is_dataclass(found.kind):
            raise ConfigError(
                f"config.{self.name}.{name} is not a key: config.{found.name} has no keys. {self.explanation}"
            )
        keys = keys_of(found.kind, found.name)
        if rest not in keys:
            raise ConfigError(f"config.{self.name}.{name} is not a key of this run. {suggest(rest, keys)}")
        return keys[rest]

    def _entry(self, name: str) -> Key:
        inner = next(typing.get_args(kind)[1] for kind in self.kinds if typing.get_origin(kind) is dict)
        return dataclasses.replace(self, name=f"{self.name}.{name}", kind=inner, default=None, read=None)

    @property
    def explanation(self) -> str:
        """The closing sentence of messages about this key."""
        return f"It means: {self.meaning}"

    @property
    def spelled(self) -> str:
        """The type as messages and --help_config show it."""
        return " | ".join(_spell(kind) for kind in self.kinds if kind is not types.NoneType)

    def _read(self, text: str) -> Any:
        """Parse a string for a key of another type: its short spelling, or a list separated by commas."""
        if self.read is None:
            return words(text) if tuple[str, ...] in self.kinds else text
        try:
            value = self.read(text)
        except ValueError as error:
            raise ConfigError(f"config.{self.name} is {short(text)}: {error} {self.explanation}") from error
        if self.has_keys and self.name not in _WARNED:
            _WARNED.add(self.name)
            logging.getLogger(__name__).warning(
                "config.%s uses a deprecated spelling; write %s", self.name, json.dumps(plain(self.check(value)))
            )
        return value

    def _expected(self, text: str) -> str:
        if bool in self.kinds:
            return "true or false."
        hint = ""
        if int in self.kinds:
            try:
                hint = f" Write {int(float(text))}." if float(text) == int(float(text)) else ""
            except (ValueError, OverflowError):
                pass
        return f"of type {self.spelled}.{hint}"

    def _convert(self, value: Any, kind: Any) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is tuple:
            inner = dataclasses.replace(self, kind=arguments[0], read=None)
            return tuple(inner.check(element) for element in value)
        if origin is dict:
            names = dataclasses.replace(self, kind=arguments[0], choices=(), low=None, high=None, read=None)
            made = {_name(names, name): self._entry(str(name)).check(element) for name, element in value.items()}
            if len(made) < len(value):
                raise ConfigError(
                    f"config.{self.name} is {short(value)}, which has the same key twice. {self.explanation}"
                )
            return Frozen(made)
        if dataclasses.is_dataclass(kind):
            return _element(kind, value if isinstance(value, Mapping) else vars(value), self)
        return self._scalar(value, kind)

    def _scalar(self, value: Any, kind: type) -> Any:
        if kind is float and not math.isfinite(value if type(value) is float else 0):
            raise ConfigError(f"config.{self.name} must be a finite number, got {value!r}. {self.explanation}")
        if self.choices and value not in self.choices:
            raise ConfigError(
                f"config.{self.name} is {short(value)}. {suggest(short(value)[1:-1], self.choices)} {self.explanation}"
            )
        if kind is str:
            self._check_text(value)
        if kind in LIMITS:
            lowest, highest = LIMITS[kind]
            low, high = (lowest if self.low is None else self.low), (highest if self.high is None else self.high)
            if not low <= value <= high:
                bounds = f"at least {low}" if value < low else f"from {low} to {high}"
                raise ConfigError(f"config.{self.name} is {short(value)}; it must be {bounds}. {self.explanation}")
        return kind(value)

    def _check_text(self, value: str) -> None:
        """Raise a ConfigError if no key can have this string, or if it has to be a path and is not."""
        wrong = next((i for i, letter in enumerate(value) if letter == "\0" or "\ud800" <= letter <= "\udfff"), None)
        if wrong is not None:
            what = "a NUL" if value[wrong] == "\0" else "not valid in UTF-8"
            raise ConfigError(f"config.{self.name} is {short(value)}: character {wrong + 1} is {what}. Remove it.")
        if len(value) > LONGEST_TEXT:
            raise ConfigError(f"config.{self.name} has {len(value):,} characters; the limit is {LONGEST_TEXT:,}.")
        if self.path and value.strip() and not value.startswith("lines:"):  # lines: has two paths, checked when opened
            path_of(value, f"config.{self.name}")


def keys_of(section: Any, name: str) -> dict[str, Key]:
    """Return the keys of a settings dataclass by their name without the section; `name` is the section's."""
    return _keys_of(section, name)


@functools.cache
def _keys_of(section: type, name: str) -> dict[str, Key]:
    try:
        hints = typing.get_type_hints(section)
    except NameError as error:
        raise ConfigError(
            f"The settings {section.__module__}.{section.__name__} have an annotation that cannot be resolved: {error}."
        ) from error
    prefix = f"{name}." if name else ""
    return {
        field.name: Key(f"{prefix}{field.name}", hints[field.name], _default(field), **field.metadata)
        for field in dataclasses.fields(section)
        if field.metadata
    }


class Frozen(dict[Any, Any]):
    """Hashable dict, which must not be changed, so that a config that contains it can be a cache key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def plain(value: Any) -> Any:
    """Convert the dataclasses in a value to dicts."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def words(text: str) -> tuple[str, ...]:
    """Split a string at commas, without surrounding spaces and empty parts."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; MISSING for a required key."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is dict:
        return isinstance(value, Mapping)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping | kind)
    return type(value) is kind or (kind is float and type(value) is int)


def _element(kind: Any, value: Mapping[str, Any], owner: Key) -> Any:
    keys = keys_of(kind, owner.name)
    for name in value:
        if name not in keys:
            raise ConfigError(f"config.{owner.name}.{name} is not a key of this run. {suggest(str(name), keys)}")
    lacking = [name for name, inner in keys.items() if inner.default is dataclasses.MISSING and name not in value]
    if lacking:
        raise ConfigError(f"config.{owner.name} lacks {', '.join(lacking)}. {owner.explanation}")
    return kind(**{name: keys[name].check(element) for name, element in value.items()})


def _name(names: Key, name: Any) -> Any:
    """Convert the name of a dict's entry; JSON has integer keys as strings."""
    if names.kind is int and isinstance(name, str) and re.fullmatch(r"-?[0-9]{1,20}", name):
        name = int(name)
    return names.check(name)


def _spell(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"tuple of {_spell(arguments[0])}"
    if origin is dict:
        return f"dict of {_spell(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return " | ".join(_spell(part) for part in arguments if part is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        inside = keys_of(kind, "").values()
        return "{" + ", ".join(f"{inner.name}: {inner.spelled}" for inner in inside) + "}"
    return str(kind.__name__)
