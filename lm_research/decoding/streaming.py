"""Streaming of decoded text in pieces that later tokens will not change, and search for stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_research.tokenizers.base import Tokenizer

UNFINISHED = "\ufffd"  # decoding of bytes that do not yet form a character
PROBE = "Yes , it is n ' t so . Is it ?"
CONTEXT = (
    4  # preceding tokens that are decoded with a text; a character has no more tokens in any byte-level vocabulary
)
SETTLED = 32  # tokens that are decoded together, so that the time per token does not grow with the text
PATIENCE = 4  # later tokens after which a tokenizer that cleans up spaces no longer changes its text


def continuation(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """Decode tokens as a continuation of the tokens before them.

    Many tokenizers drop the space before the first word that they decode; decoding with preceding tokens keeps it.
    """
    before = list(before[-CONTEXT:])
    prefix = tokenizer.decode(before)
    whole = tokenizer.decode([*before, *tokens]) if prefix else ""
    return whole[len(prefix) :] if prefix and whole.startswith(prefix) else tokenizer.decode(tokens)


def offsets(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Find the offset [characters] of each token in the text of all; all bytes of a character have its offset."""
    found, start, done = [], 0, 0  # token `start` is at offset `done`
    for place in range(len(tokens)):
        text = continuation(tokenizer, tokens[:start], tokens[start:place])
        found.append(done + len(text.rstrip(UNFINISHED)))
        if place - start >= SETTLED and not text.endswith(UNFINISHED):
            start, done = place, done + len(text)
    return found


class TextStream:
    """Decodes tokens into pieces that join to the text of all tokens.

    Characters whose bytes are incomplete are held back. Some tokenizers change earlier text when more tokens follow (they
    remove the space before a full stop); their text is held back for PATIENCE tokens.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """Start a stream that continues the tokens `before`, see `continuation`."""
        self.tokenizer, self.before = tokenizer, before
        self.tokens: list[int] = []
        self._num_emitted = 0  # characters
        self._patience = 0 if only_appends(tokenizer) else PATIENCE

    def push(self, token: int) -> str:
        """Add a token and return the new piece of text, often empty."""
        self.tokens.append(int(token))
        settled = self.tokens[: len(self.tokens) - self._patience]
        text = continuation(self.tokenizer, self.before, settled).rstrip(UNFINISHED)
        if self._patience:
            text = common_prefix(text, continuation(self.tokenizer, self.before, self.tokens))
        return self._emit(text)

    def end(self) -> str:
        """Return the text that was held back."""
        return self._emit(continuation(self.tokenizer, self.before, self.tokens))

    def _emit(self, text: str) -> str:
        piece = text[self._num_emitted :]
        self._num_emitted += len(piece)
        return piece


def only_appends(tokenizer: Tokenizer) -> bool:
    """Test on a sentence whether later tokens never change the text of earlier ones."""
    ids = tokenizer.encode(PROBE)
    whole = tokenizer.decode(ids)
    return all(whole.startswith(tokenizer.decode(ids[:count]).rstrip(UNFINISHED)) for count in range(len(ids)))


def common_prefix(first: str, second: str) -> str:
    """Return the longest common prefix."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return first[:count]


def stop_at(
    tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str], before: Sequence[int] = ()
) -> int | None:
    """Count the tokens up to the one that completes the first stop string; None if the text contains none."""

    def stopped(count: int) -> bool:
        text = continuation(tokenizer, before, tokens[:count])
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(tokens)):
        return None
    low, high = 1, len(tokens)  # binary search: a text that contains a stop string still does with more tokens
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stopped(middle) else (middle + 1, high)
    return low


def pieces(tokenizer: Tokenizer, tokens: Iterator[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Yield the non-empty pieces of the text of tokens that continue `before`."""
    stream = TextStream(tokenizer, before)
    for token in tokens:
        if piece := stream.push(token):
            yield piece
    if piece := stream.end():
        yield piece
