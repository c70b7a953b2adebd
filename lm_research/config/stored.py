"""Migration of the config.json of runs that earlier versions wrote.

In the first format each section had the keys of all its variants; keys of variants that the run did not choose had no effect and are
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
    """Return whether a stored config is in the first format, in which sections had no variants."""
    return "plugins" not in values and all(isinstance(values.get(name), Mapping) for name in _STORED)


def migrated(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Migrate a stored config to the current format; one that is current is returned unchanged.

    Raises:
      ConfigError: a section chooses a variant that does not exist.
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
    """Migrate a stored config to the current format and add the current defaults of missing keys.

    Returns:
      The complete config, and separately, by dotted name, the keys that no longer exist.

    Raises:
      ConfigError: a key has an invalid value.
    """
    known: Tree = {}
    unknown: dict[str, Any] = {}
    if "plugins" in values:  # first, because they register variants
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
