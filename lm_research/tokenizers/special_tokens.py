"""Ids of texts that contain special tokens, and of texts that continue others."""

from __future__ import annotations

from lm_research.tokenizers.base import Tokenizer


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text without adding special tokens; those that the text contains, as chat templates write them, are recognized."""
    if tokenizer.adds_special_tokens:
        return tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist() if text else []
    return tokenizer.encode(text)


def continuation_ids(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Encode a text that continues another one, `before`: the ids of both texts joined, less the ids of `before`.

    If a token spans the boundary of the joined texts, the text is encoded separately.
    """
    first, both = text_ids(tokenizer, before), text_ids(tokenizer, before + text)
    if both[: len(first)] == first:
        return both[len(first) :]
    return tokenizer.encode_after([text])[0] if tokenizer.adds_space else text_ids(tokenizer, text)
