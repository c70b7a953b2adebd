"""The config that a config file changes: a ConfigDict that checks each value as it is set, so that an error names its line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from typing_extensions import override

from lm_research.config import schema
from lm_research.config.keys import Key, keys_of, plain
from lm_research.config.registries import VARIANTS
from lm_research.config.run import Config
from lm_research.config.variants import import_plugins


class Draft(ConfigDict):  # type: ignore[misc]  # ml_collections is untyped
    """Config, or one section of it, that can be changed and then resolved.

    A section with variants stores only values that have been set, so that a key the final variant does not have can be reported.
    Other keys read as the defaults of the variant chosen so far.
    """

    def __init__(self, section: str = "") -> None:
        super().__init__()
        object.__setattr__(self, "_section", section)
        if section in VARIANTS:
            return
        for name, key in keys_of(schema.sections()[section] if section else Config, section).items():
            self._fields[name] = key.default
        for name in [] if section else schema.sections():
            self._fields[name] = Draft(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, FieldReference):  # checked when the config is resolved
            self._fields[name] = value
            return
        value = self._checked(name, value)
        current = self._fields.get(name)
        if isinstance(current, FieldReference):
            current.set(value, type_safe=False)
        else:
            self._fields[name] = value

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields and (registry := VARIANTS.get(self._section)):
            variant = registry.chosen(self._fields)
            keys = registry.keys(variant) if variant else keys_of(schema.sections()[self._section], self._section)
            if name in keys:
                return keys[name].default
        return super().__getitem__(name)

    def get_ref(self, key: str) -> FieldReference:
        """Return a reference to the value of a key, and mark the key as set."""
        if key not in self._fields:
            self[key] = self[key]
        return super().get_ref(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._section, dict(self._fields), self.is_locked)

    def to_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return all keys, with the defaults of the chosen variants; a section that chooses no variant is None."""
        return dict(self.plain(whole=True) or {})

    def plain(self, whole: bool) -> Any:
        """Convert to nested dicts; `whole` adds the defaults of the chosen variants."""
        found: dict[str, Any] = {}
        if whole and (registry := VARIANTS.get(self._section)):
            if (name := registry.chosen(self._fields)) is None and not self._fields:
                return None
            found = {leaf: key.default for leaf, key in registry.keys(name).items()} if name else {}
        return found | {name: value.plain(whole) if isinstance(value, Draft) else value for name, value in self.items()}

    @override
    def copy_and_resolve_references(self, visit_map: dict[int, Any] | None = None) -> Draft:
        copied = Draft(self._section)
        for name, value in self.items():
            copied._fields[name] = value.copy_and_resolve_references() if isinstance(value, Draft) else value
        return copied

    def _checked(self, name: str, value: Any) -> Any:
        if self._section:
            value, registry = plain(self._key(name).check(_as_dicts(value))), VARIANTS.get(self._section)
            if registry and name == registry.chooser and (value or not registry.optional):
                registry.get(value)
            return value
        if name in schema.sections():
            nothing = value is None and name in VARIANTS and VARIANTS[name].optional
            if not isinstance(value, Mapping | ConfigDict) and not nothing:
                schema.check_key(name)
            made = Draft(name)
            made.update(value or {})
            return made
        value = schema.find(name).check(value)
        if name == "plugins":
            import_plugins(value)
        return value

    def _key(self, name: str) -> Key:
        variant = None
        if (registry := VARIANTS.get(self._section)) and name != registry.chooser:
            variant = registry.chosen(self._fields)
        return schema.find(f"{self._section}.{name}", variant)


def _rebuilt(section: str, fields: dict[str, Any], is_locked: bool) -> Draft:
    """Rebuild a draft that was copied or pickled."""
    made = Draft(section)
    made._fields.update(fields)
    return made.lock() if is_locked else made


def _as_dicts(value: Any) -> Any:
    """Convert the ConfigDicts in a value to dicts."""
    if isinstance(value, Mapping | ConfigDict):
        return {name: _as_dicts(inner) for name, inner in value.items()}
    return value


def set_values(values: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Return the values of a config as nested dicts; for sections of a draft with variants, only those that have been set."""
    if isinstance(values, Draft):
        return dict(values.plain(whole=False))
    return dict(values.to_dict()) if isinstance(values, ConfigDict) else dict(values)


def default_config() -> ConfigDict:
    """Return all keys with their defaults, for a config file to change. Each value is checked as it is set."""
    return Draft().lock()
