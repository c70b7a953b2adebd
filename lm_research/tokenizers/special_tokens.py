"""What a tokenizer puts around a text: the ids before and after it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_research.tokenizers.base import TextTokenizer
from lm_research.tokenizers.spec import in_use


class Frame(NamedTuple):
    """Ids before a text and after it."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.head) + len(self.tail)


def frame_of(tokenizer: TextTokenizer) -> Frame:
    """Around what an encoder reads: the family's special tokens, or the end token of a tokenizer that only knows ids."""
    if tokenizer.languages is not None:
        return Frame(*tokenizer.languages.around(tokenizer.languages.source, tokenizer.eos_id))
    backend = getattr(tokenizer, "backend", None)
    if backend is None:
        return Frame((), (tokenizer.eos_id,))
    with in_use(tokenizer.name):
        encoding = backend.encode("a")
    inner = np.flatnonzero(np.asarray(encoding.special_tokens_mask) == 0)
    first, last = (int(inner[0]), int(inner[-1]) + 1) if len(inner) else (len(encoding.ids), len(encoding.ids))
    return Frame(tuple(encoding.ids[:first]), tuple(encoding.ids[last:]))


def model_frame(tokenizer: TextTokenizer) -> Frame:
    """Around what a task's model reads: the family's special tokens, or BERT's of a tokenizer that only knows ids."""
    return frame_of(tokenizer) if hasattr(tokenizer, "backend") else Frame((tokenizer.cls_id,), (tokenizer.sep_id,))


def target_frame(tokenizer: TextTokenizer) -> Frame:
    """Around what a decoder shall write: what comes before a text, and the end token after it; of tokenizers with languages as in the
    source, with the code of what is written.
    """
    if tokenizer.languages is not None:
        return Frame(*tokenizer.languages.around(tokenizer.languages.writes, tokenizer.eos_id))
    return Frame(frame_of(tokenizer).head, (tokenizer.eos_id,))


def ids_within(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text with nothing around it; special tokens that it names, as templates of conversations do, count as such."""
    if hasattr(tokenizer, "backend"):
        return tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist() if text else []
    return tokenizer.encode(text)


def ids_behind(tokenizer: TextTokenizer, before: str, text: str) -> list[int]:
    """As `ids_within`, of a text that goes on with another one: what both together have after the ids of that one.

    Where a token of both together reaches across, the text's own ids.
    """
    first, both = ids_within(tokenizer, before), ids_within(tokenizer, before + text)
    if both[: len(first)] == first:
        return both[len(first) :]
    return tokenizer.encode_after([text])[0] if tokenizer.adds_space else ids_within(tokenizer, text)
