"""The base of tokenizers whose pieces are numbered by a vocab.json, without a model of the tokenizers library."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lm_research.common.documents import parse_json
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.hf_settings import Id, Settings
from lm_research.tokenizers.inputs import Row, Texts
from lm_research.tokenizers.special_roles import with_fallbacks
from tokenizers import AddedToken


class NumberedTokens(Tokenizer):
    """A tokenizer whose pieces, cut by a subclass, are numbered by a vocabulary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_files, (self.files, self.name)

    @property
    @override
    def main_file(self) -> str:
        return "vocab.json"

    def _number(self, vocab: Mapping[str, int], settings: Settings, spoken: Mapping[str, int]) -> None:
        """Set the ids of all tokens.

        Args:
          vocab: those of vocab.json, and of language codes.
          settings: its special and added tokens.
          spoken: language code -> id.
        """
        self._vocab = dict(vocab)
        roles = {role: token for role, token in settings.roles.items() if token is not None}
        tokens = {token.content: token for token in (*settings.extra, *roles.values(), *settings.added.values())}
        self._vocab |= {token.content: number for number, token in settings.added.items()}
        for name in tokens:
            self._vocab.setdefault(name, max(self._vocab.values()) + 1)
        self._splitter, self._named = _splitter(tokens), tokens.keys()
        special = [name for name, token in tokens.items() if token.special]
        self._specials = {self._vocab[name] for name in special} | set(spoken.values())
        self.roles = with_fallbacks({role: self._vocab[token.content] for role, token in roles.items()})
        self._names = {number: name for name, number in self._vocab.items()}
        self.size = max(self._names) + 1
        self.max_length = settings.max_length
        self.padding_side, self.truncation_side = settings.side("padding_side"), settings.side("truncation_side")

    @override
    def num_special_tokens(self, pair: bool = False) -> int:
        return self.frame.size

    def _framed(
        self,
        encode: Callable[[str], list[int]],
        texts: Texts,
        limit: int | None,
        frame: tuple[Sequence[int], Sequence[int]],
    ) -> list[Row]:
        """Encode single texts with the special tokens of `frame` around them; special tokens in a text are recognized."""
        singles = [text for text in texts if isinstance(text, str)]
        if len(singles) < len(texts):
            raise TokenizerError(
                f"The tokenizer {self.name} belongs to models that take one text, not pairs. Leave out text_pair."
            )
        (head, tail), rows = frame, []
        limit = self._check_limit(limit, False, bool(head or tail))
        max_ids = None if limit is None else limit - len(head) - len(tail)
        for text in singles:
            parts = [part for part in self._splitter.split(text) if part]
            encoded = [[self._vocab[part.strip()]] if part.strip() in self._named else encode(part) for part in parts]
            ids = [token for part in encoded for token in part]
            start = 0 if max_ids is None or self.truncation_side == "right" else max(0, len(ids) - max_ids)
            ids = [*head, *ids[start:][:max_ids], *tail]
            rows.append(Row(ids, [0] * len(ids)))
        return rows

    @override
    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [(self.token_name(int(token)) or f"<{token}>").replace("\n", "⏎") for token in ids]

    @override
    def token_id(self, token: str) -> int | None:
        return self._vocab.get(token)

    @override
    def token_name(self, token: int) -> str | None:
        return self._names.get(token)

    @functools.cached_property
    @override
    def is_special(self) -> np.ndarray:
        special = np.ones(self.size, dtype=bool)  # ids without a token count as special
        special[list(self._names)] = False
        special[[*self._specials, *self.roles.values()]] = True
        return special


def read_vocab(content: bytes, where: str, unknown: str) -> dict[str, int]:
    """Parse vocab.json: piece -> id; raise a TokenizerError if it lacks the unknown token."""
    vocab: dict[str, int] = parse_json(content, where, dict[str, Id], error=TokenizerError, fix="Copy it again.")
    if unknown not in vocab:
        raise TokenizerError(f"{where} has no id for {unknown}, so it is not a vocabulary of pieces. Copy it again.")
    return vocab


def _splitter(tokens: Mapping[str, AddedToken]) -> re.Pattern[str]:
    """Return a pattern that finds special tokens in a text, the longest first, with the white space that they absorb."""
    names = sorted(tokens, key=len, reverse=True)
    before, behind = {True: r"(?<!\s)\s*", False: ""}, {True: r"\s*", False: ""}
    return re.compile(
        "("
        + "|".join(before[tokens[name].lstrip] + re.escape(name) + behind[tokens[name].rstrip] for name in names)
        + ")"
    )
