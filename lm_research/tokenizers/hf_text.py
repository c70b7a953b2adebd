"""The text that the tokens of a tokenizer.json represent.

Tokens are written in one of four styles: byte-level (one character per byte, GPT-2), WordPiece (## continues a word, BERT),
sentencepiece (a space is ▁, bytes outside the vocabulary are <0x41>) and whole words.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def has_type(spec: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json, or any part inside it, has this type."""
    if isinstance(spec, dict):
        return spec.get("type") == kind or any(has_type(part, kind) for part in spec.values())
    return isinstance(spec, list) and any(has_type(part, kind) for part in spec)


def _style(spec: Mapping[str, Any]) -> str:
    model = spec["model"]
    if model.get("type") == "WordPiece" or "max_input_chars_per_word" in model:  # old files have no type
        return "wordpiece"
    if model.get("type") == "WordLevel":
        return "words"
    return "bytes" if has_type([spec.get("pre_tokenizer"), spec.get("decoder")], "ByteLevel") else "pieces"


def _is_byte(spec: Mapping[str, Any], token: str) -> bool:
    return bool(spec["model"].get("byte_fallback")) and _BYTE.fullmatch(token) is not None


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 maps to itself, the other bytes to U+0100 and following."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _is_isolated(text: str) -> bool:
    """Whether BERT's rules split a token from its neighbors: punctuation, symbols and Chinese characters."""
    return len(text) == 1 and (unicodedata.category(text)[0] in "PS" or unicodedata.name(text, "").startswith("CJK"))


def byte_lengths(vocab: Mapping[str, int], size: int, spec: Mapping[str, Any]) -> np.ndarray:
    """int64 [size]: UTF-8 bytes of each token's text."""
    style, added = _style(spec), {token["content"] for token in spec.get("added_tokens") or ()}
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    lengths = np.zeros(size, np.int64)
    for token, number in vocab.items():
        if token in added and style != "words":
            lengths[number] = len(token.encode())
        elif style == "words":
            lengths[number] = len(token.encode()) + 1
        elif style == "bytes":
            lengths[number] = len(token)
        elif style == "pieces":
            lengths[number] = 1 if _is_byte(spec, token) else len(token.replace(SPACE, " ").encode())
        elif prefix and token.startswith(prefix):
            lengths[number] = len(token.removeprefix(prefix).encode())
        else:
            lengths[number] = len(token.encode()) + (not _is_isolated(token))
    return lengths


def word_starts(vocab: Mapping[str, int], size: int, spec: Mapping[str, Any]) -> np.ndarray:
    """Bool [size]: whether a token begins with a space or a line break or, for WordPiece, does not continue a word."""
    style, prefix = _style(spec), spec["model"].get("continuing_subword_prefix") or ""
    starts = np.zeros(size, bool)
    for token, number in vocab.items():
        if style in ("wordpiece", "words"):
            starts[number] = not (prefix and token.startswith(prefix))
        else:
            starts[number] = token.startswith(("Ġ", "Ċ") if style == "bytes" else (SPACE, "\n", "<0x0A>"))
    return starts


def readable(token: str, spec: Mapping[str, Any]) -> str:
    """A token's text with ▁ for a space and ⏎ for a line break; tokens that are not valid UTF-8 stay in byte-level form."""
    if _style(spec) == "bytes" and all(character in _byte_of() for character in token):
        try:
            token = bytes(_byte_of()[character] for character in token).decode("utf-8").replace(" ", SPACE)
        except UnicodeDecodeError:
            pass
    return token.replace("\n", "⏎")


def literal_form(spec: Mapping[str, Any], special_ids: Iterable[int]) -> str:
    """Return a tokenizer.json that encodes special tokens in a text as plain characters.

    A unigram model finds special tokens in a text like any other piece, so they are given names that do not occur in texts.
    """
    model = spec["model"]
    if isinstance(model.get("vocab"), list):
        vocab = list(model["vocab"])
        for number in special_ids:
            if number < len(vocab):
                vocab[number] = [f"\U0010ffff{number}", vocab[number][1]]
        not_special = [token for token in spec.get("added_tokens") or () if not token["special"]]
        spec = {**spec, "model": {**model, "vocab": vocab}, "added_tokens": not_special, "post_processor": None}
    return json.dumps(spec)


def without_prefix_space(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that does not prepend a space to a text."""

    def without(part: Any) -> Any:
        if isinstance(part, list):
            return [without(inner) for inner in part if not _is_prefix(inner)]
        if not isinstance(part, dict) or _is_prefix(part):
            return None if isinstance(part, dict) else part
        replacements: dict[Any, dict[str, Any]] = {
            "Metaspace": {"prepend_scheme": "never"},
            "ByteLevel": {"add_prefix_space": False},
        }
        return {name: without(value) for name, value in part.items()} | replacements.get(part.get("type"), {})

    return {**spec, **{name: without(spec.get(name)) for name in ("normalizer", "pre_tokenizer")}}


def _is_prefix(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend" and part.get("prepend") in (SPACE, " ")
