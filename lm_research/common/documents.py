"""Reading JSON and YAML files with limits on size and depth, and validating their types.

The caller supplies the class of the error and the fix; this module reports what is wrong and where. Types are validated by msgspec
because it supports plain annotations (`Annotated[int, Meta(ge=1)]`), reports the path in a nested value, does not accept a bool as a
number, and takes milliseconds for a vocabulary of 250,000 pieces.
"""

from __future__ import annotations

import json
import pathlib
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn, TypeGuard

import msgspec
import yaml
from msgspec import Meta

from lm_research.common import paths
from lm_research.common.texts import replace_surrogates
from lm_research.errors import DataError, UserError

# Types that many files use.
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Rate = Annotated[float, Meta(ge=0, le=1)]
Object = dict[str, Any]

SETTINGS = 64 * 2**20  # maximum bytes of a settings file; the largest tokenizer.json in use have 35 MB
MAX_DEPTH = 100  # of nested lists and objects, which are read recursively
_MAX_NODES = 10**6  # of a YAML document with its aliases expanded
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str | bytes, *, unique: bool = False, on_surrogates: Callable[[], None] | None = None) -> Any:
    """Parse a JSON value; unpaired surrogates in its strings become question marks.

    Args:
      text: the JSON text; bytes are UTF-8.
      unique: whether to reject a repeated key in an object, as safetensors does.
      on_surrogates: called if the text has unpaired surrogates.

    Raises:
      ValueError: it is not JSON, or nested too deeply; the message has the reason and the position.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # raises a UnicodeDecodeError, which is a ValueError with the position
    pairs = _unique if unique else None
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _SURROGATE.search(text):
            original, value = value, replace_surrogates(value)
            if on_surrogates is not None and value != original:
                on_surrogates()
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise ValueError(f"{error.msg}, at {place}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def parse_json(
    text: str | bytes,
    where: str,
    kind: Any = Object,
    *,
    error: type[UserError] = DataError,
    fix: str = "Fix it.",
    unique: bool = False,
) -> Any:
    """Parse a JSON value and validate its type.

    Args:
      text: the JSON text; bytes are UTF-8.
      where: origin of the text, for messages: a file, a flag.
      kind: type annotation for msgspec; Any accepts everything.
      error: class of the error.
      fix: last sentence of the message.
      unique: as for `json_value`.
    """
    try:
        value = json_value(text, unique=unique)
    except ValueError as cause:
        raise error(f"{where} is not JSON: {cause}. {fix}") from cause
    return check(value, kind, where, error=error, fix=fix)


def read_json(
    path: pathlib.Path,
    kind: Any = Object,
    *,
    error: type[UserError] = DataError,
    fix: str = "Fix it.",
    limit: int = SETTINGS,
    unique: bool = False,
) -> Any:
    """Read a JSON file; see `parse_json` and `read_bytes`."""
    return parse_json(
        read_bytes(path, error=error, fix=fix, limit=limit), str(path), kind, error=error, fix=fix, unique=unique
    )


def parse_yaml(
    text: str, where: str, kind: Any = Any, *, error: type[UserError] = DataError, fix: str = "Fix it."
) -> Any:
    """Parse a YAML document of plain types and validate its type; limits apply with aliases expanded. See `parse_json`."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_nodes(node)
            value = None if node is None else replace_surrogates(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError as cause:
        raise error(f"{where} is not YAML: it is nested more than {MAX_DEPTH} deep. {fix}") from cause
    except Exception as cause:  # PyYAML's constructors of tags such as !!int and !!timestamp fail in many ways
        raise error(f"{where} is not YAML: {' '.join(str(cause).split()).rstrip('.')}. {fix}") from cause
    return check(value, kind, where, error=error, fix=fix)


def read_yaml(path: pathlib.Path, kind: Any = Any, *, error: type[UserError] = DataError, fix: str = "Fix it.") -> Any:
    """Read a YAML file; see `parse_yaml` and `read_bytes`."""
    data = read_bytes(path, error=error, fix=fix)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path} is not UTF-8 text ({cause}). {fix}") from cause
    return parse_yaml(text, str(path), kind, error=error, fix=fix)


def read_bytes(
    path: pathlib.Path, *, error: type[UserError] = DataError, fix: str = "Fix it.", limit: int = SETTINGS
) -> bytes:
    """Read a regular file of at most `limit` bytes. Pipes, sockets and devices, which may never end, are rejected."""
    try:
        with paths.open_file(path) as file:
            data = file.read(limit + 1)
    except OSError as cause:
        if paths.kind(path) == paths.NOTHING:
            raise error(f"There is no file {path}. {fix}") from cause
        fix = "Change its permissions." if isinstance(cause, PermissionError) else fix
        raise error(f"{path} cannot be read: {cause.strerror}. {fix}") from cause
    if len(data) > limit:
        raise error(f"{path} has more than {limit // 2**20} MiB, which is too large for this kind of file. {fix}")
    return data


def check(value: Any, kind: Any, where: str, *, error: type[UserError] = DataError, fix: str = "Fix it.") -> Any:
    """Validate a value and convert it to the type `kind` (for example integers to floats where floats are required)."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as cause:
        _reject(value, cause, where, error, fix)


def check_fields(
    values: Mapping[str, Any],
    kinds: Mapping[str, Any],
    where: str,
    *,
    error: type[UserError] = DataError,
    fix: str = "",
) -> None:
    """Raise an error if a value is neither None nor of the type that `kinds` has for its name; other names are not checked."""
    for name, value in values.items():
        if value is not None and name in kinds:
            try:
                msgspec.convert(value, kinds[name])
            except (msgspec.ValidationError, RecursionError, OverflowError) as cause:
                _reject(value, cause, f"{where}: {name}", error, fix or "Fix it.")


def _reject(value: Any, cause: Exception, where: str, error: type[UserError], fix: str) -> NoReturn:
    found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", str(cause), re.DOTALL)
    reason = found[1].replace("`", "") if found else str(cause)
    place = f", at {found[2]}" if found and found[2] else ""
    reason = reason[:1].lower() + (reason[1:] if len(reason) <= 300 else f"{reason[1:297]}...")
    raise error(f"{where} is {short(value)}: {reason}{place}. {fix}") from cause


_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring, _short.maxother, _short.maxlong = 2, 3, 3, 60, 60, 40


def short(value: Any) -> str:
    """Return a value's repr for a message, with the middle of a long one omitted."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"an integer of {value.bit_length()} bits"


def whole_number(text: str) -> int | None:
    """Parse a text of 1 to 18 digits (0 to 9), with optional white space around it; None for any other text."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,18}\s*", text) else None


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number (not a bool) that is neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} occurs twice")
        found[key] = value
    return found


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
    return bool(level)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _check_nodes(root: yaml.Node) -> None:
    """Raise a ValueError for a document that contains itself, or is too deep or too large with its aliases expanded."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep, or an alias is inside its own anchor")
        if id(node) not in sizes:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = [child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,))]
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in flat)
        return sizes[id(node)]

    if size(root, 0) > _MAX_NODES:
        raise ValueError(f"it has more than {_MAX_NODES:,} values with its aliases expanded")
