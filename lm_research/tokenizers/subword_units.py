"""Byte-pair encoding of lower-case words whose inner pieces end with @@ (Sennrich et al. 2016, arXiv:1508.07909): Blenderbot-small.

A piece that merges make may be missing in vocab.json, and is then unknown. The tokenizers library has no such model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from typing_extensions import override

from lm_research.common.texts import replace_surrogates
from lm_research.tokenizers.base import Frame
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_settings import KIND, SETTINGS, Settings, read_settings
from lm_research.tokenizers.hf_vocabularies import FILES, read_merges
from lm_research.tokenizers.inputs import Row, Texts
from lm_research.tokenizers.numbered_tokens import NumberedTokens, read_vocab

_INNER, _LAST, _LINE_BREAK = "@@", "</w>", "__newln__"


class SubwordUnits(NumberedTokens):
    """A tokenizer of words, punctuation and line breaks, made of a vocab.json and a merges.txt."""

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer instead. Raises a TokenizerError if a file is damaged."""
        self.name, kind = settings.where, settings.kind
        assert kind is not None, "from_files passes one"
        unknown = str(settings.roles.get("unk") or kind.roles["unk"])
        names = FILES[kind.vocabulary]
        self._number(read_vocab(files[names[0]], f"{self.name}/{names[0]}", unknown), settings, {})
        merges = read_merges(files[names[1]], self.name)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._cut = functools.lru_cache(maxsize=2**16)(self._cut_word)
        saved_names = (*names, *(name for name in SETTINGS if name != "config.json"), TEMPLATE)
        self.files = {name: bytes(files[name]) for name in saved_names if name in files}
        self.files.setdefault("tokenizer_config.json", json.dumps({"tokenizer_class": kind.name}).encode() + b"\n")
        facts = json.dumps([self._vocab, self.roles, merges], sort_keys=True).encode()
        self.digest = hashlib.sha256(facts).hexdigest()

    @classmethod
    @override
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        return cls(files, read_settings(files, where, KIND["BlenderbotSmallTokenizer"]))

    @property
    @override
    def frame(self) -> Frame:
        return Frame((), ())

    # ------------------------------------------------------------------------------------------ text to ids

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in replace_surrogates(list(texts))]

    def _encode(self, text: str) -> list[int]:
        words = re.findall(r"\S+\n?", text)
        return [self._vocab.get(piece.lower(), self.unk_id) for word in words for piece in self._pieces_of(word)]

    def _pieces_of(self, word: str) -> list[str]:
        """Cut a stretch without white space, but for a line break at its end."""
        word = re.sub(r"([.,!?()])", r" \1", word).replace("'", " ' ")
        word = re.sub(r"\s{2,}", " ", word).replace("\n", f" {_LINE_BREAK}")
        return [piece for part in word.split(" ") if part for piece in self._cut(part.lower())]

    def _cut_word(self, word: str) -> list[str]:
        if len(word) == 1:
            return [word]
        parts = [*word[:-1], word[-1] + _LAST]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return [*(part + _INNER for part in parts[:-1]), parts[-1].removesuffix(_LAST)]

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(self._encode, texts, limit, ((), ()))

    # ------------------------------------------------------------------------------------------ ids to text

    @override
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        numbers = [int(token) for token in np.ravel(ids) if int(token) in self._names]
        names = [self._names[one] for one in numbers if not (skip_special_tokens and one in self._specials)]
        return " ".join(names).replace(f"{_INNER} ", "").strip()

    # ------------------------------------------------------------------------------------------ about the ids

    @functools.cached_property
    @override
    def token_bytes(self) -> np.ndarray:
        inner = [(name.removesuffix(_INNER), not name.endswith(_INNER)) for name in self._in_order]
        return np.where(self.is_special, 0, [len(text.encode()) + space for text, space in inner]).astype(np.int32)

    @functools.cached_property
    @override
    def starts_word(self) -> np.ndarray:
        """Bool [size], all false: a piece does not show whether another precedes it in its word."""
        return np.zeros(self.size, bool)

    @property
    def _in_order(self) -> list[str]:
        return [self._names.get(number, "") for number in range(self.size)]
