"""Reading and validating tokenizer.json files before they reach the `tokenizers` library.

That library is written in Rust. Unexpected contents make it panic, which is not an Exception in Python; it allocates memory up to the
highest id; and its regular expressions have no time limit.
"""

from __future__ import annotations

import base64
import contextlib
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta

import tokenizers
from lm_research.common.documents import Count, Object, Rate, check, check_fields, json_value
from lm_research.errors import TokenizerError, UserError
from lm_research.tokenizers.hf_settings import MAX_IDS, Content, Id
from lm_research.tokenizers.patterns import check_pattern
from lm_research.tokenizers.sentencepiece_model import MAX_SCORE, check_charsmap

FIX = "Copy it again from where the model came from, or save it again with the library that made it."


class _Added(TypedDict, total=False):
    id: Required[Id]
    content: Required[Content]


class _Template(TypedDict, total=False):
    """A TemplateProcessing post_processor."""

    single: list[dict[str, _Place]]
    pair: list[dict[str, _Place]]
    special_tokens: dict[str, _Special]


class _Place(TypedDict, total=False):
    id: Required[str]
    type_id: Required[Annotated[int, Meta(ge=0, lt=2**15)]]


class _Special(TypedDict, total=False):
    ids: Required[list[Id]]


_PAIR = tuple[str, Annotated[float, Meta(ge=-MAX_SCORE, le=MAX_SCORE)]]
_PARTS = {
    "added_tokens": list[_Added],
    **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"), Object),
}
_MODEL = {
    "vocab": Annotated[dict[str, Id], Meta(max_length=MAX_IDS)] | Annotated[list[_PAIR], Meta(max_length=MAX_IDS)],
    "unk_id": Id,
    "dropout": Rate,
    "max_input_chars_per_word": Count,
    "continuing_subword_prefix": Content,
    "end_of_word_suffix": Content,
}
_REPLACE = {"pattern": dict[Literal["String", "Regex"], Annotated[str, Meta(min_length=1)]], "content": Content}
_PREPEND = {"prepend": Annotated[str, Meta(max_length=100)]}
_MAX_GROWTH = 2**16  # factor by which replacement rules may lengthen a text


def parse_spec(data: bytes, where: str) -> tuple[tokenizers.Tokenizer, Object]:
    """Build the tokenizer of a tokenizer.json, and return it with the parsed file.

    Args:
      data: content of the file.
      where: path of the file, for messages.

    Raises:
      TokenizerError: it is damaged, exceeds the limits on size and time, or has a newer version than the library supports.
    """
    try:
        text = data.decode("utf-8")
        spec = json_value(text)
    except ValueError as error:
        raise TokenizerError(f"{where} is not JSON: {error}. {FIX}") from error
    check_spec(spec, where)
    problem = (
        f"{where} is damaged, or has a newer version than the tokenizers library {tokenizers.__version__} supports"
    )
    with guarded(problem, "Copy it again, or upgrade the library."):
        backend = tokenizers.Tokenizer.from_str(text)
    return backend, spec


@contextlib.contextmanager
def guarded(problem: str, fix: str = FIX) -> Iterator[None]:
    """Convert errors of the Rust library, its panics included, to a TokenizerError."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else f"{reason[:297]}..."
        raise TokenizerError(f"{problem} ({reason}). {fix}") from error


def guarded_use(name: str) -> contextlib.AbstractContextManager[None]:
    """Return the `guarded` context for encoding and decoding."""
    return guarded(
        f"The tokenizer {name} fails on a text", f"A rule or a token in its files is wrong or missing. {FIX}"
    )


def check_spec(spec: Any, where: str) -> None:
    """Raise a TokenizerError for contents of a tokenizer.json that are unsafe for the library."""
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise TokenizerError(f"{where} is not an object with a model. {FIX}")
    check_fields(spec, _PARTS, where, error=TokenizerError, fix=FIX)
    check_fields(spec["model"], _MODEL, f"{where}: model", error=TokenizerError, fix=FIX)
    vocab, unknown = spec["model"].get("vocab"), spec["model"].get("unk_id")
    if not vocab and not spec.get("added_tokens"):
        raise TokenizerError(f"{where} has no tokens. {FIX}")
    if isinstance(vocab, list) and unknown is not None and unknown >= len(vocab):
        raise TokenizerError(f"{where}: model: unk_id is {unknown}, but vocab has only {len(vocab)} pieces. {FIX}")
    _check_merges(spec["model"], where)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _check_rules(spec.get(part), f"{where}: {part}")
    growth = max(_growth(spec.get(part)) for part in ("normalizer", "decoder"))
    if growth > _MAX_GROWTH:
        raise TokenizerError(f"{where}: its rules may lengthen a text {growth:.0e} times. {FIX}")
    highest = _highest_id(spec.get("post_processor"))
    if highest >= MAX_IDS:
        raise TokenizerError(f"{where}: post_processor has the id {highest}, but the maximum is {MAX_IDS - 1}. {FIX}")


def check_special_ids(spec: Object, size: int, where: str) -> None:
    """Raise a TokenizerError if the post_processor adds an id that no token has."""
    highest = _highest_id(spec.get("post_processor"))
    if highest >= size:
        raise TokenizerError(
            f"{where}: post_processor puts the id {highest} around texts, but the tokens have the ids 0 to {size - 1}. {FIX}"
        )


def _highest_id(processor: Any) -> int:
    """The highest id in a post_processor: in `ids` of templates, or in the (token, id) pairs of older formats."""
    if isinstance(processor, dict):
        values = [value for key, value in processor.items() if key != "tokens"]
        numbers = processor.get("ids")
        ids = [number for number in numbers if type(number) is int] if isinstance(numbers, list) else []
        ids += [processor[key][1] for key in ("sep", "cls") if _is_token(processor.get(key))]
        return max([*ids, *map(_highest_id, values)], default=0)
    return max(map(_highest_id, processor), default=0) if isinstance(processor, list) else 0


def _is_token(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and type(value[1]) is int


def _check_merges(model: Object, where: str) -> None:
    """Check that merges have continuing_subword_prefix in second place, which the library removes unchecked."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    for merge in merges if prefix and isinstance(merges, list) else ():
        second = (
            merge.rpartition(" ")[2]
            if isinstance(merge, str)
            else merge[-1]
            if isinstance(merge, list) and merge
            else ""
        )
        if not isinstance(second, str) or not second.startswith(str(prefix)):
            shown = reprlib.repr(second)
            raise TokenizerError(
                f"{where}: model: merges has {shown} in second place, which lacks continuing_subword_prefix. {FIX}"
            )


def _check_template(template: Object, where: str) -> None:
    value = check(template, _Template, where, error=TokenizerError, fix=FIX)
    special_tokens = value.get("special_tokens") or {}
    for form in ("single", "pair"):
        for item in value.get(form) or ():
            token = item.get("SpecialToken")
            if token and token["id"] not in special_tokens:
                raise TokenizerError(
                    f"{where}: {form} has {reprlib.repr(token['id'])}, which special_tokens lacks. {FIX}"
                )


def _check_rules(part: Any, where: str) -> None:
    if isinstance(part, list):
        for inner in part:
            _check_rules(inner, where)
    elif isinstance(part, dict):
        if part.get("type") == "TemplateProcessing":
            _check_template(part, where)
        elif part.get("type") == "Replace":
            check_fields(part, _REPLACE, where, error=TokenizerError, fix=FIX)
        elif part.get("type") == "Prepend":
            check_fields(part, _PREPEND, where, error=TokenizerError, fix=FIX)
        if isinstance(pattern := part.get("Regex"), str):
            try:
                check_pattern(pattern)
            except ValueError as error:
                shown = pattern if len(pattern) <= 100 else f"{pattern[:97]}..."
                raise TokenizerError(f"{where} has the regular expression {shown!r}: {error}. {FIX}") from error
        if part.get("type") == "Precompiled":
            try:
                check_charsmap(base64.b64decode(part.get("precompiled_charsmap") or "", validate=True))
            except (ValueError, TypeError) as error:
                raise TokenizerError(f"{where} has a damaged precompiled_charsmap ({error}). {FIX}") from error
        for inner in part.values():
            _check_rules(inner, where)


def _growth(part: Any) -> float:
    """The factor by which a part's replacement rules, applied in order, may lengthen a text.

    The factors of two rules multiply if the second may match what the first wrote. Example: a -> bb and b -> cc give 4.
    """
    growth, written = 1.0, set[str]()  # by the rules so far, and the characters that they may have written
    for rule in _replacements(part):
        content, pattern = rule["content"], rule["pattern"].get("String")
        factor = len(content) / len(pattern) if pattern else 1.0 + len(content)
        if factor > 1:
            growth = growth * factor if not pattern or written.issuperset(pattern) else max(growth, factor)
            written |= set(content)
    return growth


def _replacements(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if (
            part.get("type") == "Replace"
            and isinstance(part.get("content"), str)
            and isinstance(part.get("pattern"), dict)
        ):
            yield part
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from _replacements(inner)
