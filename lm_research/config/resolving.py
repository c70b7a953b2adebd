"""Conversion of user-supplied values to the frozen config, and back to plain values."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import short
from lm_research.config import schema
from lm_research.config.draft import set_values
from lm_research.config.keys import keys_of, plain
from lm_research.config.registries import VARIANTS
from lm_research.config.run import Config
from lm_research.config.variants import Variants, import_plugins
from lm_research.errors import ConfigError

Tree = dict[str, Any]  # sections to keys to values


def resolve(values: Mapping[str, Any]) -> Config:
    """Check a (possibly partial) nested mapping and return the frozen config.

    Args:
      values: section -> key -> value, as in a ConfigDict or a stored config.json; missing keys get their defaults.

    Raises:
      ConfigError: an unknown key, a key of a variant that is not chosen, a wrong type, a value out of range, or an invalid combination.
    """
    config = build(values)
    for section in schema.sections():
        if (settings := getattr(config, section)) is not None:
            settings.check(config)
    return config


def build(values: Mapping[str, Any]) -> Config:
    """Build the config, checking each value separately; raise like `resolve`, except for invalid combinations."""
    values = set_values(values)
    top = keys_of(Config, "")
    found: Tree = {name: key.check(values[name]) for name, key in top.items() if name in values}
    import_plugins(found.get("plugins", ()))
    if objective := objective_of_task(values):
        values["objective"] = _for_task(values.get("objective") or {}, objective)
    for name, content in values.items():
        if name in top:
            continue
        nothing = content is None and name in VARIANTS and VARIANTS[name].optional
        if name not in schema.sections() or not (nothing or isinstance(content, Mapping)):
            schema.check_key(name)
        if name in VARIANTS:
            found[name] = _variant(VARIANTS[name], content or {})
        else:
            found[name] = _section(schema.sections()[name], name, content)
    return Config(**found)


def _section(kind: type, name: str, content: Mapping[str, Any]) -> Any:
    keys = keys_of(kind, name)
    for leaf in content:
        if leaf not in keys:
            schema.check_key(f"{name}.{leaf}")
    return kind(**{leaf: keys[leaf].check(value) for leaf, value in content.items()})


def _variant(registry: Variants[Any], content: Mapping[str, Any]) -> Any:
    """Return the settings of the variant that a section chooses, or None if it chooses none."""
    name = registry.chosen(content)
    rest = {leaf: value for leaf, value in content.items() if leaf != registry.chooser}
    if name is None and registry.optional:
        for leaf in rest:
            raise ConfigError(
                f"config.{registry.section}.{leaf} is set, but no {registry.section} is chosen. Choose one with --config.{registry.section}."
                f"{registry.chooser}, for example {(registry.owners(leaf) or registry.names())[0]}."
            )
        return None
    name = name or ""
    keys = registry.keys(name)
    for leaf in rest:
        if leaf not in keys:
            raise schema.not_of(registry.section, leaf, name)
    return registry.make(name, **{leaf: keys[leaf].check(value) for leaf, value in rest.items()})


def objective_of_task(values: Mapping[str, Any]) -> str | None:
    """Return the objective whose settings the chosen task uses, or None."""
    registry = VARIANTS["task"]
    task = registry.chosen(values.get("task"))
    return registry.make(task).reads_objective if task else None


def _for_task(content: Mapping[str, Any], objective: str) -> Tree:
    """Return the section objective for a task that uses `objective`.

    A recipe may choose another objective for pre-training, whose keys are dropped.
    """
    registry = VARIANTS["objective"]
    other, own = registry.keys(registry.chosen(content) or objective), registry.keys(objective)
    kept = {leaf: value for leaf, value in content.items() if leaf in own or leaf not in other}
    return {**kept, registry.chooser: objective}


def overlay(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Apply changes, by dotted key, to values.

    Where a change chooses another variant, keys that only the previous variant has are dropped: they were set for it.
    """
    tree: Tree = {name: dict(content) if isinstance(content, Mapping) else content for name, content in values.items()}
    for section, registry in VARIANTS.items():
        chooser = f"{section}.{registry.chooser}"
        if chooser in changes and tree.get(section):
            before, after = registry.chosen(tree[section]), registry.chosen({registry.chooser: changes[chooser]})
            gone = (registry.keys(before) if before else {}).keys() - (registry.keys(after) if after else {}).keys()
            tree[section] = {leaf: value for leaf, value in tree[section].items() if leaf not in gone}
    for name, value in changes.items():
        section, _, leaf = name.partition(".")
        if not leaf:
            tree[name] = value
            continue
        leaf, _, entry = leaf.partition(".")
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree[section][leaf] = _with_entry(tree, f"{section}.{leaf}", entry, value) if entry else value
    return tree


def _with_entry(tree: Tree, name: str, entry: str, value: Any) -> Any:
    """Return the dict of a key with one entry, NAME or NAME.KEY, changed; raise a ConfigError if its value is not a dict."""
    section, _, leaf = name.partition(".")
    key = schema.find(name)
    whole = copy.deepcopy(plain(key.check(tree[section].get(leaf, key.default)))) or {}
    if not isinstance(whole, dict):
        raise ConfigError(
            f"config.{name}.{entry} is set, but config.{name} is {short(whole)}, which has no entries. Set the whole dict with --config.{name}=JSON."
        )
    *parents, last = entry.split(".", 1)
    inside = whole
    for parent in parents:
        inside = inside.setdefault(_as_in(inside, parent), {})
    inside[_as_in(inside, last)] = value
    return whole


def _as_in(content: Mapping[Any, Any], name: str) -> Any:
    """Return the key of a dict that is spelled `name`; keys may be numbers."""
    return next((existing for existing in content if str(existing) == name), name)


def replace(config: Config, **sections: Any) -> Config:
    """Return a copy with some keys changed and checked again: `replace(config, train=dict(num_steps=10))`."""
    changes: Tree = {}
    for section, content in sections.items():
        inside = isinstance(content, Mapping)
        changes |= {f"{section}.{leaf}": value for leaf, value in content.items()} if inside else {section: content}
    return resolve(overlay(to_dict(config), changes))


def to_dict(config: Config) -> dict[str, Any]:
    """Convert the resolved config to plain nested dicts, the form in which it is stored."""
    return dataclasses.asdict(config)


def dumps(config: Config) -> str:
    """Serialize the config to JSON, as stored in run directories and checkpoints."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def by_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a stored config, or of any nested dicts, by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= by_key(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves
