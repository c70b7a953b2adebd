"""Texts that go on with one another, as ids."""

from __future__ import annotations

from lm_research.tokenizers.base import Tokenizer


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text with nothing around it; special tokens that it names, as templates of conversations do, count as such."""
    if tokenizer.adds_special_tokens:
        return tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist() if text else []
    return tokenizer.encode(text)


def continuation_ids(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """As `ids_within`, of a text that goes on with another one: what both together have after the ids of that one.

    Where a token of both together reaches across, the text's own ids.
    """
    first, both = text_ids(tokenizer, before), text_ids(tokenizer, before + text)
    if both[: len(first)] == first:
        return both[len(first) :]
    return tokenizer.encode_after([text])[0] if tokenizer.adds_space else text_ids(tokenizer, text)
