"""Reading `--config`: a Python file with `get_config()`, a stored config.json, or a run directory with one.

A config file is the user's program, so any error inside it becomes a `ConfigError` with the file, the line and the fix.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict, FrozenConfigDict

from lm_research.common import interrupts
from lm_research.common.documents import parse_json, read_bytes
from lm_research.common.paths import FILE, kind, path_of
from lm_research.config import stored
from lm_research.config.draft import default_config, set_values
from lm_research.config.registries import VARIANTS
from lm_research.config.schema import check_key, sections
from lm_research.errors import ConfigError, UserError

STORED_NAME = "config.json"
_LARGEST = 16 * 2**20  # bytes of a config file


def load(spec: str) -> ConfigDict:
    """Load a config with all defaults filled in, without checking combinations of keys.

    Args:
      spec: FILE.py, FILE.py:ARG (ARG is passed to `get_config`), FILE.json, or a directory with a config.json.

    Raises:
      ConfigError: the config cannot be loaded; the message names the file and, where possible, the line.
    """
    path, argument = _split(spec)
    if path.is_dir():
        path = _stored_in(path)
    found = kind(path)
    if not found:
        raise ConfigError(f"--config={spec}: there is no file {str(path)!r}. {_nearest_file(path)}")
    if found != FILE:
        raise ConfigError(f"--config={spec} is {found}. Give a file such as configs/quickstart.py.")
    if path.suffix not in (".py", ".json"):
        raise ConfigError(
            f"--config={spec}: {str(path)!r} is neither a Python config file (.py) nor a stored config (.json). "
            "Give a file such as configs/quickstart.py, or the directory of an earlier run."
        )
    content = read_bytes(path, error=ConfigError, fix="Give a file such as configs/quickstart.py.", limit=_LARGEST)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: {error}. Write it as UTF-8 text.") from error
    if path.suffix == ".py":
        values = _run_python(path, text, argument)
    elif argument is None:
        fix = "Fix it, or use the Python config file that the run was started with."
        values = stored.migrated(parse_json(text, str(path), error=ConfigError, fix=fix))
    else:
        raise ConfigError(f"--config={spec}: only Python config files take an argument. Remove {':' + argument!r}.")
    try:
        return _typed(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _split(spec: str) -> tuple[Path, str | None]:
    if not spec:
        raise ConfigError("--config is empty. Give a config file, for example --config=configs/quickstart.py.")
    match = re.fullmatch(r"(.+?\.(?:py|json)):(.*)", spec)
    if match and not os.path.exists(spec):
        return path_of(match[1], "--config"), match[2]
    return path_of(spec, "--config"), None


def _stored_in(directory: Path) -> Path:
    if (directory / STORED_NAME).is_file():
        return directory / STORED_NAME
    files = sorted(file.name for file in directory.glob("*.py") if file.name != "__init__.py")
    inside = f"Config files in it: {_listed(files)}." if files else "Give a config file or a run directory."
    raise ConfigError(f"--config={directory} is a directory without a {STORED_NAME}. {inside}")


def _listed(names: Sequence[str]) -> str:
    """Join names, the first twelve of many."""
    more = f" and {len(names) - 12} others" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


def _nearest_file(path: Path) -> str:
    """Return a closing sentence that proposes a file with a name like the missing `path`."""
    for candidate in (path.with_name(path.name + ".py"), Path("configs") / path.name):
        if candidate.is_file():
            return f"Did you mean {candidate}?"
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"Did you mean {folder / near[0]}?"
    if names:
        return f"Config files in {folder}/: {_listed(names)}."
    return f"The current directory is {Path.cwd()}; paths are relative to it."


def _run_python(path: Path, text: str, argument: str | None) -> Mapping[str, Any]:
    """Run a config file and call its `get_config`."""
    module = types.ModuleType("config_file")
    module.__file__ = str(path.resolve())
    linecache.checkcache(module.__file__)
    with _importable(path.resolve()), locate_errors(path):
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ConfigError("it defines no get_config(). Add `def get_config():` that returns a ConfigDict.")
        arguments = [] if argument is None else [argument]
        _check_call(path, get_config, arguments)
        result = get_config(*arguments)
        if not isinstance(result, ConfigDict | FrozenConfigDict):
            hint = " Is `return config` missing?" if result is None else ""
            raise ConfigError(
                f"get_config() returned {type(result).__name__}, not a ConfigDict.{hint} Start from "
                "lm_research.config.default_config(), change it and return it."
            )
        return set_values(result)


def _check_call(path: Path, get_config: Callable[..., Any], arguments: list[str]) -> None:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        if arguments:
            fix = f"get_config() takes no argument, but {arguments[0]!r} was given. Write --config={path}."
        else:
            fix = f"get_config() needs an argument. Write --config={path}:ARG."
        raise ConfigError(fix) from error


@contextlib.contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Let config files import each other: as `configs.NAME` from the configs/ directory above them, else by bare name.

    Modules imported this way are removed from sys.modules afterwards, and none is compiled to disk: the next config may come
    from another checkout, or from a file changed within the same second.
    """
    home = next((folder for folder in path.parents if folder.name == "configs"), None)
    stashed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "configs"}
    if home:  # an explicit package takes precedence over any other `configs` on the path
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = [str(home), str(Path("configs").resolve())]
    before, writes = set(sys.modules), sys.dont_write_bytecode
    root = str(home.parent if home else path.parent)
    sys.path.insert(0, root)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(root)
        sys.dont_write_bytecode = writes
        for name in set(sys.modules) - before | {"configs"} & sys.modules.keys():
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name.split(".")[0] == "configs" or Path(file).parent == path.parent:
                del sys.modules[name]
        sys.modules.update(stashed)


@contextlib.contextmanager
def locate_errors(path: Path) -> Iterator[None]:
    """Convert anything that a config file or another user program raises to a ConfigError with file and line.

    This includes SystemExit and os._exit, which would look like success.
    """

    def end(status: int) -> NoReturn:
        raise SystemExit(status)

    ending, os._exit = os._exit, end
    try:
        yield
    except interrupts.Interrupted:
        raise
    except SyntaxError as error:
        file = Path(error.filename).name if error.filename else path.name
        source = path if file == path.name else path.parent / file
        raise ConfigError(
            f"{source}, line {error.lineno}: Python cannot read it ({error.msg}). Fix that line."
        ) from error
    except BaseException as error:  # including KeyboardInterrupt: real signals raise interrupts.Left
        folder = path.resolve().parent
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == folder]
        if not frames:
            text = str(error) if isinstance(error, UserError) else f"it raised {type(error).__name__}: {error}. Fix it."
            raise ConfigError(f"{path}: {text}") from error
        where = f"{path.parent / Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        code = (frames[-1].line or "").strip()
        raise ConfigError(f"{where}: {_explain(error, code)}") from error
    finally:
        os._exit = ending


def _explain(error: BaseException, code: str) -> str:
    """Explain an exception raised by the line `code` of a config file."""
    if isinstance(error, UserError):
        return str(error)
    target = re.match(r"\w+\.(\w+(?:\.\w+)?)\s*=(?!=)", code)
    if target and isinstance(error, AttributeError | KeyError):
        try:
            check_key(target[1])
        except ConfigError as key_error:
            return str(key_error)
    return f"`{code}` raised {type(error).__name__}: {str(error).rstrip('.')}. Fix that line."


def _typed(values: Mapping[str, Any]) -> ConfigDict:
    """Return all keys of the schema, with `values` applied over the defaults."""
    config = default_config()
    for name in sorted(values, key=lambda name: name != "plugins"):  # first, because they register variants
        if name in sections() and isinstance(values[name], Mapping):
            chooser = VARIANTS[name].chooser if name in VARIANTS else None
            config[name].update(dict(sorted(values[name].items(), key=lambda item: item[0] != chooser)))
        elif isinstance(values[name], Mapping) and not values[name]:
            raise ConfigError(f"config.{name} is an empty object and not a section of a run. Remove it.")
        else:
            config[name] = values[name]
    return config
