"""The config.json of runs, including those that earlier versions wrote.

At first each section held the keys of all of its variants; the keys of variants that the run did not choose were never read, and are
dropped. Later many keys were renamed (renamed_keys.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.config import schema
from lm_research.config.keys import Key, keys_of
from lm_research.config.registries import VARIANTS
from lm_research.config.renamed_keys import renamed
from lm_research.config.resolving import Tree, build, objective_of_task, to_dict
from lm_research.config.run import Config
from lm_research.config.variants import import_plugins

# Sections that every stored config has.
_STORED = ("model", "objective", "data", "optimizer", "schedule", "train")


def is_old(values: Mapping[str, Any]) -> bool:
    """Whether values are a stored config of before sections had variants."""
    return "plugins" not in values and all(isinstance(values.get(name), Mapping) for name in _STORED)


def migrated(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config in today's form; what was not stored by an earlier version stays as it is.

    Raises:
      ConfigError: a section chooses what there is not.
    """
    values = renamed(values)
    if not is_old(values):
        return values
    found: Tree = dict(values)
    for section, registry in VARIANTS.items():
        content = values.get(section) or {}
        name = (objective_of_task(values) if section == "objective" else None) or registry.chosen(content)
        if name is None:
            found[section] = None
            continue
        others = {leaf for variant in registry for leaf in registry.keys(variant)} - registry.keys(name).keys()
        kept = {leaf: value for leaf, value in content.items() if leaf not in others}
        found[section] = kept | {registry.chooser: name}
    return found


def complete(values: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
    """A stored config in today's form, with today's defaults for keys that it does not have; and apart, by key, what is no longer known.

    Raises:
      ConfigError: a key has a value that it cannot have.
    """
    known: Tree = {}
    unknown: dict[str, Any] = {}
    if "plugins" in values:  # which say what others there are
        import_plugins(keys_of(Config, "")["plugins"].check(values["plugins"]))
    for section, content in migrated(values).items():
        if section in schema.sections() and isinstance(content, Mapping):
            keys = _keys(section, content)
            known[section] = {leaf: value for leaf, value in content.items() if leaf in keys}
            unknown |= {f"{section}.{leaf}": value for leaf, value in content.items() if leaf not in keys}
        else:
            is_key = section in keys_of(Config, "") or section in schema.sections()
            (known if is_key else unknown)[section] = content
    return to_dict(build(known)), unknown


def _keys(section: str, content: Mapping[str, Any]) -> dict[str, Key]:
    if section not in VARIANTS:
        return keys_of(schema.sections()[section], section)
    name = VARIANTS[section].chosen(content)
    return VARIANTS[section].keys(name) if name else {}
