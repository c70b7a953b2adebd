"""Registries of variants that are chosen by name: objectives, tasks, optimizers, schedules, families, metrics, trackers, sources.

Each variant registers itself where it is defined, in this library and in other packages alike:

    @OBJECTIVES.register("masked_lm", MaskedLMConfig)
    class MaskedLanguageModel(Objective): ...

Files of the registry's package are found automatically. Other packages are found through an entry point of the group
`lm_research.plugins` that names a module, through an import in a config file, or through the config key `plugins`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from lm_research.common import interrupts
from lm_research.config.keys import Key, keys_of
from lm_research.errors import ConfigError, UserError, suggest

ENTRY_POINTS = "lm_research.plugins"

T = TypeVar("T")


class Variants(Generic[T]):
    """Registry of one kind of variant. It reads like a dict by name, and imports a variant's file on first access.

    Attributes:
      section: kind of variant; if variants have settings, also the config section that chooses one.
      chooser: key of the section that names the variant.
      base: settings dataclass that all variants share, and that of variants that register none; None if variants have no settings.
    """

    def __init__(self, section: str, package: str, chooser: str = "name", base: type | None = None) -> None:
        self.section, self.chooser, self.base = section, chooser, base
        self._package = package
        self._found: dict[str, tuple[T, type | None]] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, settings: type | None = None, module: str = "") -> Callable[[T], T]:
        """Return a decorator that registers a class or function under a name.

        Args:
          name: name of the variant.
          settings: frozen dataclass of its settings, a subclass of `base`; None uses `base`.
          module: module that defines it; "" is the caller's.

        Raises:
          ConfigError: another module has registered that name, or the name or the settings are invalid.
        """
        module = module or sys._getframe(1).f_globals["__name__"]
        self._check(name, settings, module)

        def add(variant: T) -> T:
            earlier = self._origins.setdefault(name, module)  # the same module if a file is imported again
            if earlier != module:
                raise ConfigError(
                    f"{self.section} {name!r} is registered twice: by {earlier} and by {module}. Rename one of them."
                )
            self._found[name] = (variant, settings)
            return variant

        return add

    def _check(self, name: Any, settings: Any, module: str) -> None:
        """Raise a ConfigError if the name or the settings of a variant are invalid."""
        what = f"{module} registers the {self.section} {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{what}, but a name must be a non-empty string. Choose one.")
        if settings is None or not dataclasses.is_dataclass(self.base):
            return
        base = self.base.__name__
        if not isinstance(settings, type) or not issubclass(settings, self.base):
            raise ConfigError(
                f"{what} with the settings {settings!r}, which must be a subclass of {base}. Derive them from it."
            )
        bare = [leaf for leaf, value in vars(settings).items() if isinstance(value, dataclasses.Field)]
        if bare:
            raise ConfigError(
                f"{what}, but its settings {settings.__name__} are not a dataclass. Decorate them with @dataclasses.dataclass(frozen=True)."
            )
        own = {field.name for field in dataclasses.fields(settings)} - {
            field.name for field in dataclasses.fields(self.base)
        }
        if taken := sorted(leaf for leaf in own if leaf in dir(self.base)):
            raise ConfigError(
                f"{what}, but its settings {settings.__name__} have a key {taken[0]!r}, a name that {base} already uses. Rename the key."
            )

    def get(self, name: str) -> T:
        """Return the variant with a name; raise a ConfigError with the nearest name if there is none."""
        return self._entry(name)[0]

    def settings(self, name: str) -> Any:
        """Return the settings dataclass of a variant, or `base` if it registered none; raise like `get`."""
        found = self._entry(name)[1] or self.base
        assert found is not None, f"{self.section} has no settings"
        return found

    @property
    def default(self) -> str | None:
        """The variant that is chosen by default; None if none is."""
        assert self.base is not None, f"{self.section} has no settings"
        return keys_of(self.base, self.section)[self.chooser].default or None

    @property
    def optional(self) -> bool:
        """Whether a run may choose no variant."""
        return self.default is None

    def make(self, name: str, **values: Any) -> Any:
        """Make the settings of a variant from some values; raise like `get`."""
        return self.settings(name)(**{self.chooser: name}, **values)

    def keys(self, name: str) -> dict[str, Key]:
        """Return the keys of a variant's settings by their name without the section; raise like `get`."""
        return keys_of(self.settings(name), self.section)

    def chosen(self, content: Mapping[str, Any] | None) -> str | None:
        """Return the variant that the section's values choose, or the default; raise a ConfigError if it is not a string."""
        assert self.base is not None, f"{self.section} has no settings"
        key = keys_of(self.base, self.section)[self.chooser]
        return key.check((content or {}).get(self.chooser, key.default)) or None

    def name_of(self, settings: Any) -> str:
        """Return the name of the variant that settings belong to."""
        return str(getattr(settings, self.chooser))

    def owners(self, leaf: str) -> tuple[str, ...]:
        """List the variants that have a key; imports all variants."""
        return tuple(name for name in self.names() if leaf in self.keys(name))

    def names(self) -> tuple[str, ...]:
        """List all names in alphabetical order; imports every file of the package, and plug-ins."""
        for file in self._files():
            importlib.import_module(f"{self._package}.{file}")
        import_entry_points()
        return tuple(sorted(self._found))

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._found or name in self.names()

    def items(self) -> list[tuple[str, T]]:
        """List all variants as pairs (name, variant)."""
        return [(name, self.get(name)) for name in self.names()]

    def _entry(self, name: str) -> tuple[T, type | None]:
        if name not in self._found and name in self._files():
            importlib.import_module(f"{self._package}.{name}")
        if name not in self._found and name not in self.names():
            raise ConfigError(f"config.{self.section}.{self.chooser} is {name!r}. {suggest(str(name), self.names())}")
        return self._found[name]

    def _files(self) -> list[str]:
        spec = importlib.import_module(self._package).__spec__
        return [module.name for module in pkgutil.iter_modules(spec and spec.submodule_search_locations or ())]


@functools.cache
def import_entry_points() -> None:
    """Import the modules that installed packages name in the group `lm_research.plugins`; raise a ConfigError if one fails."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        where = f"the entry point {entry.name!r} of the installed package {entry.dist.name if entry.dist else '?'}"
        _import_plugin(entry.module, where, "Fix or uninstall that package.")


def import_plugins(modules: Iterable[str], where: str = "config.plugins") -> None:
    """Import the modules that the config key `plugins` or a file names; raise a ConfigError that includes `where` if one fails."""
    for module in modules:
        _import_plugin(module, where, "It must be installed, or be in the current directory or on PYTHONPATH.")


def _import_plugin(module: str, where: str, fix: str) -> None:
    try:
        importlib.import_module(module)
    except interrupts.Interrupted:
        raise
    except UserError as error:
        raise ConfigError(f"{where} names {module!r}, which cannot be imported: {error}") from error
    except BaseException as error:  # including SystemExit, which would look like success
        inside = [
            f" at {frame.filename}, line {frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<")
        ]
        cause = f"({type(error).__name__}: {error}{inside[-1] if inside else ''})"
        not_found = isinstance(error, ModuleNotFoundError) and not inside
        raise ConfigError(
            f"{where} names {module!r}, which cannot be imported {cause}. {fix if not_found else 'Fix that module.'}"
        ) from error
