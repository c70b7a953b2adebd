"""Text as it comes: pieces of what tokens say that later tokens will not change, and stop strings in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_research.tokenizers.base import Tokenizer

UNFINISHED = "\ufffd"  # what bytes that are no character yet are decoded to
PROBE = "Yes , it is n ' t so . Is it ?"
CONTEXT = 4  # tokens before a text that are looked at; a character has no more in any byte-level vocabulary
SETTLED = 32  # tokens whose text is measured together, so that long texts take no longer a token than short ones
PATIENCE = 4  # tokens after which a tokenizer that tidies up its text is taken to be done with it


def continuation(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens add to that of the tokens before them.

    Many tokenizers leave out the space before the first word of what they decode: behind others it must not be lost.
    """
    before = list(before[-CONTEXT:])
    said = tokenizer.decode(before)
    whole = tokenizer.decode([*before, *tokens]) if said else ""
    return whole[len(said) :] if said and whole.startswith(said) else tokenizer.decode(tokens)


def offsets(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Where in the text of all tokens each of them begins [characters]; all bytes of a character begin where it does."""
    found, start, done = [], 0, 0  # what is decoded begins at token `start`, `done` characters into the text
    for place in range(len(tokens)):
        text = continuation(tokenizer, tokens[:start], tokens[start:place])
        found.append(done + len(text.rstrip(UNFINISHED)))
        if place - start >= SETTLED and not text.endswith(UNFINISHED):
            start, done = place, done + len(text)
    return found


class TextStream:
    """Pieces that join to the text of all tokens; a character whose bytes are not all there yet waits for the others.

    Some tokenizers change what they said before when more tokens come (a space before a full stop goes). Their text waits
    for PATIENCE more tokens.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before` are tokens that the text goes on from, see `continuation`."""
        self.tokenizer, self.before = tokenizer, before
        self.tokens: list[int] = []
        self.said = 0  # characters
        self._patience = 0 if only_appends(tokenizer) else PATIENCE

    def push(self, token: int) -> str:
        """The piece that a token adds, often empty."""
        self.tokens.append(int(token))
        settled = self.tokens[: len(self.tokens) - self._patience]
        text = continuation(self.tokenizer, self.before, settled).rstrip(UNFINISHED)
        if self._patience:
            text = common_prefix(text, continuation(self.tokenizer, self.before, self.tokens))
        return self._say(text)

    def end(self) -> str:
        """What is left."""
        return self._say(continuation(self.tokenizer, self.before, self.tokens))

    def _say(self, text: str) -> str:
        piece = text[self.said :]
        self.said += len(piece)
        return piece


def only_appends(tokenizer: Tokenizer) -> bool:
    """Whether more tokens leave the text of earlier ones as it is, tried out on a sentence."""
    ids = tokenizer.encode(PROBE)
    whole = tokenizer.decode(ids)
    return all(whole.startswith(tokenizer.decode(ids[:count]).rstrip(UNFINISHED)) for count in range(len(ids)))


def common_prefix(first: str, second: str) -> str:
    """The longest beginning of both."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return first[:count]


def stop_at(
    tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str], before: Sequence[int] = ()
) -> int | None:
    """How many tokens there are when a stop string first stands in their text; None if there is none."""

    def stopped(count: int) -> bool:
        text = continuation(tokenizer, before, tokens[:count])
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(tokens)):
        return None
    low, high = 1, len(tokens)  # a text that contains a string does so with more tokens too
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if stopped(middle) else (middle + 1, high)
    return low


def pieces(tokenizer: Tokenizer, tokens: Iterator[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Non-empty pieces of the text of some tokens behind others."""
    stream = TextStream(tokenizer, before)
    for token in tokens:
        if piece := stream.push(token):
            yield piece
    if piece := stream.end():
        yield piece
