"""All keys of a config by name, and the text of `--help_config`.

Looking up a key of a single variant imports all files of the section's package, so the keys that all variants share are tried first.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from lm_research.config.keys import Key, keys_of
from lm_research.config.registries import METRICS, VARIANTS
from lm_research.config.renamed_keys import RENAMED
from lm_research.config.run import Config
from lm_research.errors import ConfigError, suggest


@functools.cache
def sections() -> dict[str, type]:
    """Return each section and the dataclass of the keys that it always has."""
    hints = typing.get_type_hints(Config)
    return {name: _dataclass(hints[name]) for name in hints if name not in keys_of(Config, "")}


def _dataclass(hint: Any) -> type:
    found: type = next(kind for kind in (*typing.get_args(hint), hint) if kind is not types.NoneType)
    return found


@functools.cache
def walk() -> tuple[Key, ...]:
    """Return every key that does not depend on a variant: top-level keys, and those that all variants of a section share."""
    inside = (key for name, kind in sections().items() for key in keys_of(kind, name).values())
    return (*keys_of(Config, "").values(), *inside)


@functools.cache
def _by_name() -> dict[str, Key]:
    return {key.name: key for key in walk()}


def names() -> list[str]:
    """Return the names of all keys of all variants; imports every variant."""
    return [*keys_of(Config, ""), *(name for section in sections() for name in _names_in(section))]


def _names_in(section: str) -> list[str]:
    """Return the names of all keys of all variants of a section; empty if the section does not exist."""
    common = (name for name in _by_name() if name.startswith(f"{section}."))
    variants = VARIANTS[section] if section in VARIANTS else ()
    own = (key.name for variant in variants for key in VARIANTS[section].keys(variant).values())
    return list(dict.fromkeys([*common, *own]))


def find(name: str, chosen: str | None = None) -> Key:
    """Look up the key, or the entry of a dict, with a dotted name.

    In a section with variants the key is that of the variant `chosen`; without one, it accepts the choices of all variants that have it.

    Raises:
      ConfigError: there is no such key; the message suggests the nearest name.
    """
    if name in _by_name():
        return _by_name()[name]
    section, _, leaf = name.partition(".")
    first, _, entry = leaf.partition(".")
    if entry and (key := find(f"{section}.{first}", chosen)).has_keys:
        return key.at(entry)
    if section in VARIANTS and leaf:
        registry = VARIANTS[section]
        if chosen and leaf in registry.keys(chosen):
            return registry.keys(chosen)[leaf]
        if keys := [registry.keys(variant)[leaf] for variant in registry.owners(leaf)]:
            choices = dict.fromkeys(choice for key in keys for choice in key.choices)
            return dataclasses.replace(keys[0], choices=tuple(choices) if all(key.choices for key in keys) else ())
    raise ConfigError(f"config.{name} is {_unknown(name, section, leaf)}")


def check_key(name: str) -> None:
    """Raise a ConfigError with the nearest valid name if `name` (dotted) is not a key of any variant."""
    find(name)


def _unknown(name: str, section: str, leaf: str) -> str:
    inside = _names_in(section)
    if name in sections():
        shown = ", ".join(inside[:12]) + (f" and {len(inside) - 12} more (--help_config)" if len(inside) > 12 else "")
        return f"a section, not a key. Set one of: {shown}."
    if new := RENAMED.get(section, {}).get(leaf):
        return f"an earlier name. The key is now config.{section}.{new}: {find(f'{section}.{new}').meaning}"
    if leaf and inside:
        near = suggest(leaf, [valid.split(".", 1)[1] for valid in inside])
        return f"not a key of this run: section {section!r} has no {leaf!r}. {near}"
    every = names()
    elsewhere = [valid for valid in every if valid.split(".")[-1] == (leaf or section)]
    if nearest := elsewhere or difflib.get_close_matches(name, every, n=1):
        return f"not a key of this run. Did you mean {nearest[0]!r}?"
    return f"not a key of this run. Sections: {', '.join(sorted(sections()))}; --help_config lists all keys."


def not_of(section: str, leaf: str, chosen: str) -> ConfigError:
    """Return the error for a key that the chosen variant does not have: it belongs to another variant, or to none."""
    registry = VARIANTS[section]
    if not (owners := registry.owners(leaf)):
        return ConfigError(f"config.{section}.{leaf} is {_unknown(f'{section}.{leaf}', section, leaf)}")
    chooser = f"{section}.{registry.chooser}"
    return ConfigError(
        f"config.{section}.{leaf} is a key of {chooser}={' or '.join(owners)}, but this run has {chooser}={chosen}, which does not use it. "
        f"Remove it, or set --config.{chooser}={owners[0]}."
    )


def describe() -> str:
    """Return the text of `--help_config`: every key with type, default, choices or range, and meaning; keys of a variant follow its name."""
    return "\n".join(["Keys of a run; change one with --config.KEY=VALUE.", "", *_described()])


def _described() -> Iterator[str]:
    yield from _lines(keys_of(Config, "").values())
    for section, kind in sections().items():
        yield from _lines(keys_of(kind, section).values())
        if section not in VARIANTS:
            continue
        registry = VARIANTS[section]
        for variant in registry:
            common = keys_of(kind, section)
            own = [key for leaf, key in registry.keys(variant).items() if leaf != registry.chooser]
            changed = [key for key in own if key != common.get(key.name.split(".")[1])]
            yield f"  {section}.{registry.chooser}={variant}  {_summary(registry.get(variant))}"
            yield from (f"  {line}" for line in _lines(changed))


def _lines(keys: Iterable[Key]) -> Iterator[str]:
    for key in keys:
        registry = VARIANTS.get(key.name.split(".")[0])
        choices = registry.names() if registry and key.name == f"{registry.section}.{registry.chooser}" else key.choices
        shown = " | ".join(map(str, choices)) if choices else key.spelled
        if key.path:
            shown = f"{shown}, a path"
        if key.low is not None:
            shown = f"{shown} from {key.low:,}"
        if key.high is not None:
            shown = f"{shown} to {key.high:,}"
        yield f"  {key.name}  ({shown}; default {key.default!r})"
        yield f"      {key.meaning}"
        if key.name == "task.metric":
            yield from (f"      {line}" for line in _metrics())


def _metrics() -> Iterator[str]:
    """List the registered metrics by kind of predictions and direction."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for _, one in METRICS.items():
        direction = "higher" if one.higher_is_better else "lower"
        kinds.setdefault((one.kind or "any predictions", direction), []).append(one.name)
    yield from (
        f"of {kind}, {direction} is better: {', '.join(sorted(names))}"
        for (kind, direction), names in sorted(kinds.items())
    )


def _summary(variant: object) -> str:
    """Return the summary of a variant's docstring."""
    return (inspect.getdoc(variant) or "").split("\n\n")[0].replace("\n", " ")
