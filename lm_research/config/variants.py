"""Things that are chosen by name: objectives, tasks, optimizers, schedules, families, metrics, trackers, sources.

Each registers itself where it is defined, ours and those of other packages alike:

    @OBJECTIVES.register("masked_lm", MaskedLMConfig)
    class MaskedLanguageModel(Objective): ...

A file of the registry's package is found without being listed anywhere. A package of the user's own is found through an entry point of
the group `lm_research.plugins` that names a module, through an import in a config file, or through the config key `plugins`.
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
    """The registry of one kind of thing; reads like a dict from names to what was registered, and imports a variant's file when asked for it.

    Attributes:
      section: what is chosen, a section of the config where it is one.
      chooser: the key of the section that names the variant.
      base: the dataclass of the settings that all variants have, and of a variant that registers none; None where there are none.
    """

    def __init__(self, section: str, package: str, chooser: str = "name", base: type | None = None) -> None:
        self.section, self.chooser, self.base = section, chooser, base
        self._package = package
        self._found: dict[str, tuple[T, type | None]] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, settings: type | None = None, module: str = "") -> Callable[[T], T]:
        """A decorator that gives a class or function its name, and the frozen dataclass of its settings if it has any of its own.

        `module` is where it is defined; left out, the caller's.

        Raises:
          ConfigError: another module has registered that name, or it or the settings cannot be.
        """
        module = module or sys._getframe(1).f_globals["__name__"]
        self._check(name, settings, module)

        def add(variant: T) -> T:
            earlier = self._origins.setdefault(name, module)  # the same where a file is read again
            if earlier != module:
                raise ConfigError(
                    f"{self.section} {name!r} is registered twice: by {earlier} and by {module}. Rename one of them."
                )
            self._found[name] = (variant, settings)
            return variant

        return add

    def _check(self, name: Any, settings: Any, module: str) -> None:
        """Raises a ConfigError for what cannot be the name of a variant, or the dataclass of its settings."""
        what = f"{module} registers the {self.section} {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{what}, and a name is a text that is not empty. Give it one.")
        if settings is None or not dataclasses.is_dataclass(self.base):
            return
        base = self.base.__name__
        if not isinstance(settings, type) or not issubclass(settings, self.base):
            raise ConfigError(
                f"{what} with the settings {settings!r}, which must be a subclass of {base}. Make them one."
            )
        bare = [leaf for leaf, value in vars(settings).items() if isinstance(value, dataclasses.Field)]
        if bare:
            raise ConfigError(
                f"{what}, and its settings {settings.__name__} are no dataclass: write @dataclasses.dataclass(frozen=True) above them."
            )
        own = {field.name for field in dataclasses.fields(settings)} - {
            field.name for field in dataclasses.fields(self.base)
        }
        if taken := sorted(leaf for leaf in own if leaf in dir(self.base)):
            raise ConfigError(
                f"{what}, and its settings {settings.__name__} have a key {taken[0]!r}, which {base} has for something else. Rename the key."
            )

    def get(self, name: str) -> T:
        """What was registered under a name; raises a ConfigError with the nearest name if there is none."""
        return self._entry(name)[0]

    def settings(self, name: str) -> Any:
        """The dataclass of a variant's settings, `base` where it has none of its own; raises like `get`."""
        found = self._entry(name)[1] or self.base
        assert found is not None, f"{self.section} has no settings"
        return found

    @property
    def default(self) -> str | None:
        """The name that is chosen where none is given; None where that is nothing."""
        assert self.base is not None, f"{self.section} has no settings"
        return keys_of(self.base, self.section)[self.chooser].default or None

    @property
    def optional(self) -> bool:
        """Whether a run may choose nothing."""
        return self.default is None

    def make(self, name: str, **values: Any) -> Any:
        """The settings of a variant, with some values; raises like `get`."""
        return self.settings(name)(**{self.chooser: name}, **values)

    def keys(self, name: str) -> dict[str, Key]:
        """The keys of a variant's settings by their last name; raises like `get`."""
        return keys_of(self.settings(name), self.section)

    def chosen(self, content: Mapping[str, Any] | None) -> str | None:
        """The name that the values of the section choose, or the usual one; raises a ConfigError if it is no text."""
        assert self.base is not None, f"{self.section} has no settings"
        key = keys_of(self.base, self.section)[self.chooser]
        return key.check((content or {}).get(self.chooser, key.default)) or None

    def name_of(self, settings: Any) -> str:
        """The variant that settings are of."""
        return str(getattr(settings, self.chooser))

    def owners(self, leaf: str) -> tuple[str, ...]:
        """The variants that have a key; imports all."""
        return tuple(name for name in self.names() if leaf in self.keys(name))

    def names(self) -> tuple[str, ...]:
        """All names in alphabetical order; imports every file of the package, and the plug-ins."""
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
        """(name, variant) of all."""
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
    """Imports the modules that installed packages name in the group `lm_research.plugins`; raises a ConfigError for one that fails."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        where = f"the entry point {entry.name!r} of the installed package {entry.dist.name if entry.dist else '?'}"
        _import_plugin(entry.module, where, "Fix or uninstall that package.")


def import_plugins(modules: Iterable[str], where: str = "config.plugins") -> None:
    """Import the modules that the config key `plugins`, or a file, names; raise a ConfigError, which says `where`, for one that cannot be."""
    for module in modules:
        _import_plugin(module, where, "It must be installed, or be in the current directory or on PYTHONPATH.")


def _import_plugin(module: str, where: str, fix: str) -> None:
    try:
        importlib.import_module(module)
    except interrupts.Interrupted:
        raise
    except UserError as error:
        raise ConfigError(f"{where} names {module!r}, which cannot be imported: {error}") from error
    except BaseException as error:  # another program's; SystemExit too, which would look like success
        inside = [
            f" at {frame.filename}, line {frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<")
        ]
        said = f"({type(error).__name__}: {error}{inside[-1] if inside else ''})"
        lacks = isinstance(error, ModuleNotFoundError) and not inside
        raise ConfigError(
            f"{where} names {module!r}, which cannot be imported {said}. {fix if lacks else 'Fix that module.'}"
        ) from error
