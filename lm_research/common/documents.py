"""The one door for files that say something in JSON or YAML: bounded in size and depth, and of the types that are expected.

Whoever reads such a file gives the error and the fix in his own words; what is wrong, and where, is said here. Types are checked by
msgspec, because it reads plain annotations (`Annotated[int, Meta(ge=1)]`), names the place in a nested value, treats a bool as no
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

# Types of numbers that nearly every file of settings has.
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Rate = Annotated[float, Meta(ge=0, le=1)]
Object = dict[str, Any]

SETTINGS = 64 * 2**20  # bytes of a file of settings; the largest tokenizer.json in use have 35 MB
MAX_DEPTH = 100  # of lists and objects in each other; what reads them recurses
_MAX_NODES = 10**6  # of a YAML document with its aliases written out
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str | bytes, *, unique: bool = False, on_surrogates: Callable[[], None] | None = None) -> Any:
    """A JSON value; characters of its texts that UTF-8 cannot hold (halves of surrogate pairs) become question marks.

    Args:
      text: of one value; bytes are UTF-8.
      unique: whether a key that occurs twice in an object is refused, as safetensors does.
      on_surrogates: called if the text has unpaired surrogates.

    Raises:
      ValueError: it is none, or too deep; the text says why, with the line where there are several.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # whose error is a ValueError that says where
    pairs = _unique if unique else None
    try:
        value = json.loads(text, object_pairs_hook=pairs)
        if _SURROGATE.search(text):
            given, value = value, replace_surrogates(value)
            if on_surrogates is not None and value != given:
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
    """The JSON value that a text holds, of the type `kind`.

    Args:
      text: the whole of it.
      where: what holds it, for the message: a file, a flag.
      kind: an annotation as msgspec knows them; Any takes everything.
      error: of which class a mistake is; fix: the sentence that ends its paragraph.
      unique: as for `json_value`.
    """
    try:
        value = json_value(text, unique=unique)
    except ValueError as mistake:
        raise error(f"{where} is not JSON: {mistake}. {fix}") from mistake
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
    """The JSON value that a file holds; see `parse_json` and `read_bytes`."""
    return parse_json(
        read_bytes(path, error=error, fix=fix, limit=limit), str(path), kind, error=error, fix=fix, unique=unique
    )


def parse_yaml(
    text: str, where: str, kind: Any = Any, *, error: type[UserError] = DataError, fix: str = "Fix it."
) -> Any:
    """The value of plain types that a YAML document holds; anchors may not make it large, deep or endless. See `parse_json`."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_nodes(node)
            value = None if node is None else replace_surrogates(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError as mistake:
        raise error(f"{where} is not YAML: it is nested more than {MAX_DEPTH} deep. {fix}") from mistake
    except Exception as mistake:  # PyYAML's constructors of tags such as !!int and !!timestamp fail in many ways
        raise error(f"{where} is not YAML: {' '.join(str(mistake).split()).rstrip('.')}. {fix}") from mistake
    return check(value, kind, where, error=error, fix=fix)


def read_yaml(path: pathlib.Path, kind: Any = Any, *, error: type[UserError] = DataError, fix: str = "Fix it.") -> Any:
    """The value of plain types that a YAML file holds; see `parse_yaml`."""
    data = read_bytes(path, error=error, fix=fix)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as mistake:
        raise error(f"{path} is not UTF-8 text ({mistake}). {fix}") from mistake
    return parse_yaml(text, str(path), kind, error=error, fix=fix)


def read_bytes(
    path: pathlib.Path, *, error: type[UserError] = DataError, fix: str = "Fix it.", limit: int = SETTINGS
) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Pipes, sockets and devices are refused, for they may never end."""
    try:
        with paths.open_file(path) as file:
            data = file.read(limit + 1)
    except OSError as mistake:
        if paths.kind(path) == paths.NOTHING:
            raise error(f"There is no file {path}. {fix}") from mistake
        fix = "Change its permissions." if isinstance(mistake, PermissionError) else fix
        raise error(f"{path} cannot be read: {mistake.strerror}. {fix}") from mistake
    if len(data) > limit:
        raise error(f"{path} has more than {limit // 2**20} MiB, too much for what it is to hold. {fix}")
    return data


def check(value: Any, kind: Any, where: str, *, error: type[UserError] = DataError, fix: str = "Fix it.") -> Any:
    """`value` as the type `kind` has it (integers become floats where it asks for these, say)."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as mistake:
        _refuse(value, mistake, where, error, fix)


def check_fields(
    values: Mapping[str, Any],
    kinds: Mapping[str, Any],
    where: str,
    *,
    error: type[UserError] = DataError,
    fix: str = "",
) -> None:
    """Raises an error unless those of `values` that `kinds` knows are None or of its types. Unknown ones are left alone."""
    for name, value in values.items():
        if value is not None and name in kinds:
            try:
                msgspec.convert(value, kinds[name])
            except (msgspec.ValidationError, RecursionError, OverflowError) as mistake:
                _refuse(value, mistake, f"{where}: {name}", error, fix or "Fix it.")


def _refuse(value: Any, mistake: Exception, where: str, error: type[UserError], fix: str) -> NoReturn:
    found = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", str(mistake), re.DOTALL)
    reason = found[1].replace("`", "") if found else str(mistake)
    place = f", at {found[2]}" if found and found[2] else ""
    reason = reason[:1].lower() + (reason[1:] if len(reason) <= 300 else f"{reason[1:297]}...")
    raise error(f"{where} is {short(value)}: {reason}{place}. {fix}") from mistake


_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring, _short.maxother, _short.maxlong = 2, 3, 3, 60, 60, 40


def short(value: Any) -> str:
    """What a message shows of a value: its repr, the middle left out where it is long."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a whole number of {value.bit_length()} bits"


def whole_number(text: str) -> int | None:
    """The number that a text of digits (0 to 9) is, spaces around it aside; None of any other text, and of one with more than 18 digits."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,18}\s*", text) else None


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, and neither NaN nor infinite."""
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
    """Raises a ValueError for a graph that holds itself, or that is too deep or too large once its aliases are written out."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep, or an alias stands inside what it names")
        if id(node) not in sizes:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = [child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,))]
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in flat)
        return sizes[id(node)]

    if size(root, 0) > _MAX_NODES:
        raise ValueError(f"its aliases stand for more than {_MAX_NODES:,} values")
