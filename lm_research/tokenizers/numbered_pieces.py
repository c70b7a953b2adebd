"""Tokenizers whose sentencepiece models cut texts into pieces and whose vocab.json numbers them: Marian's and M2M-100's.

Marian has two models, source.spm for what is read and target.spm for what is written; a text may begin with a code such as >>fra<<
that tells a model with several target languages which one to write. M2M-100 has one and marks texts with their language. Pieces that
vocab.json has not are unknown. The tokenizers library has no such model, so sentencepiece itself cuts texts; files stay as they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import sentencepiece

from lm_research.common.documents import parse_json
from lm_research.common.texts import replace_surrogates
from lm_research.errors import TokenizerError
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import SPACE, Tokenizer
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_settings import KIND, SETTINGS, Id, Settings, read_settings
from lm_research.tokenizers.hf_text import byte_lengths, word_starts
from lm_research.tokenizers.inputs import Row, Texts
from lm_research.tokenizers.languages import M2M_100, WMT_21
from lm_research.tokenizers.sentencepiece_model import NO_PREFIX, read_model
from lm_research.tokenizers.special_roles import with_fallbacks
from tokenizers import AddedToken

_MAX_LENGTH = 512  # tokens that Marian's models take where no file says it
_CODE = re.compile(">>.*?<<", re.DOTALL)


class NumberedPieces(Tokenizer):
    """A tokenizer of sentencepiece models and a vocab.json."""

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer; raises a TokenizerError where a file is damaged or of a form that is not known here."""
        self.name, kind = settings.where, settings.kind
        assert kind is not None, "from_files names one"
        if settings.config.get("separate_vocabs"):
            raise TokenizerError(
                f"{self.name}: separate_vocabs is true in tokenizer_config.json, and a vocabulary of its own for what is written "
                "(target_vocab.json) is not supported. Use a model whose sides share vocab.json."
            )
        names = hf_vocabularies.FILES[kind.vocabulary]
        protos = [files[name] for name in names[:-1]]
        self._reads, self._writes = (_open(files[name], f"{self.name}/{name}") for name in (names[0], names[-2]))
        self._vocab = _read_vocab(files[names[-1]], f"{self.name}/{names[-1]}")
        self.languages, self._has_codes = None, not kind.languages
        spoken: dict[str, int] = {}
        if kind.languages:
            codes = WMT_21 if settings.config.get("language_codes") == "wmt21" else M2M_100
            spoken = {code: len(self._vocab) + number for number, code in enumerate(codes)}
            self._vocab |= {f"__{code}__": number for code, number in spoken.items()}
            self.languages = hf_vocabularies.languages_among(spoken, kind, settings)
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
        self.max_length = settings.max_length or (_MAX_LENGTH if self._has_codes else None)
        self.padding_side, self.truncation_side = settings.side("padding_side"), settings.side("truncation_side")
        self._spec = {"model": {"type": "Unigram", "byte_fallback": "<0x00>" in self._vocab}}
        kept = (*names, *(name for name in SETTINGS if name != "config.json"), TEMPLATE)
        self.files = {name: bytes(files[name]) for name in kept if name in files}
        self.files.setdefault("tokenizer_config.json", json.dumps({"tokenizer_class": kind.name}).encode() + b"\n")
        spoken_by = [self.languages.source, self.languages.target] if self.languages else []
        facts = json.dumps([self._vocab, self.roles, spoken_by], sort_keys=True).encode()
        self.digest = hashlib.sha256(b"".join(protos) + facts).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_files, (self.files, self.name)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        guess = "MarianTokenizer" if "source.spm" in files else "M2M100Tokenizer"
        return cls(files, read_settings(files, where, KIND[guess]))

    @property
    def main_file(self) -> str:
        return "vocab.json"

    def num_special_tokens(self, pair: bool = False) -> int:
        return self.frame.size

    # ------------------------------------------------------------------------------------------ text to ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it and with none found in it but a code that Marian's may begin with."""
        return self._encode(self._reads, texts)

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(self._writes, texts)

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(self._going_on, texts)

    @property
    def adds_space(self) -> bool:
        return self._going_on is not self._reads

    @functools.cached_property
    def _going_on(self) -> sentencepiece.SentencePieceProcessor:
        """The model of what is read without the space before a text; itself where that makes no difference, or spaces are folded."""
        one, more = (self._reads.normalize(text) for text in ("a", " a"))
        if not one.startswith(SPACE) or more == one:
            return self._reads
        return _open(self._reads.serialized_model_proto() + NO_PREFIX, self.name)

    def _encode(self, model: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
        texts = replace_surrogates(list(texts))
        codes = [match.group() if self._has_codes and (match := _CODE.match(text)) else "" for text in texts]
        cut = model.encode([text[len(code) :] for text, code in zip(texts, codes, strict=True)], out_type=str)
        rows = ([code, *pieces] if code else pieces for code, pieces in zip(codes, cut, strict=True))
        return [[self._vocab.get(piece, self.unk_id) for piece in row] for row in rows]

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(self._reads, texts, limit, self.frame if add_special_tokens else ((), ()))

    def _target_rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(self._writes, texts, limit, self.target_frame if add_special_tokens else ((), ()))

    def _framed(
        self,
        model: sentencepiece.SentencePieceProcessor,
        texts: Texts,
        limit: int | None,
        frame: tuple[Sequence[int], Sequence[int]],
    ) -> list[Row]:
        """Rows of texts whose special tokens, where they name some, count as such."""
        singles = [text for text in texts if isinstance(text, str)]
        if len(singles) < len(texts):
            raise TokenizerError(
                f"The tokenizer {self.name} is of models that read one text, not pairs. Leave out text_pair."
            )
        (head, tail), rows = frame, []
        limit = self._checked(limit, False, bool(head or tail))
        room = None if limit is None else limit - len(head) - len(tail)
        for text in singles:
            parts = [part for part in self._splitter.split(text) if part]
            kept = [
                [self._vocab[part.strip()]] if part.strip() in self._named else self._encode(model, [part])[0]
                for part in parts
            ]
            ids = [token for part in kept for token in part]
            cut = slice(room) if self.truncation_side == "right" else slice(max(0, len(ids) - (room or len(ids))), None)
            row = [*head, *ids[cut], *tail]
            rows.append(Row(row, [0] * len(row)))
        return rows

    # ------------------------------------------------------------------------------------------ ids to text

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        text, pieces = "", []
        for token in [int(token) for token in np.ravel(ids) if int(token) in self._names]:
            if token not in self._specials:
                pieces.append(self._names[token])
            elif not skip_special_tokens:
                text += self._writes.decode_pieces(pieces) + self._names[token] + " " * self._has_codes
                pieces = []
        return str(text + self._writes.decode_pieces(pieces)).replace(SPACE, " ").strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [(self.token_name(int(token)) or f"<{token}>").replace("\n", "⏎") for token in ids]

    def token_id(self, token: str) -> int | None:
        return self._vocab.get(token)

    def token_name(self, token: int) -> str | None:
        return self._names.get(token)

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        special = np.ones(self.size, dtype=bool)  # ids without a token stand for no text either
        special[list(self._names)] = False
        special[[*self._specials, *self.roles.values()]] = True
        return special

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        return np.where(self.is_special, 0, byte_lengths(self._vocab, self.size, self._spec)).astype(np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        return np.where(self.is_special, False, word_starts(self._vocab, self.size, self._spec))


def _open(proto: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    try:
        read_model(proto)
        return sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(
            f"{where} is not a sentencepiece model, or it is damaged ({error}). Copy it again."
        ) from error


def _read_vocab(content: bytes, where: str) -> dict[str, int]:
    """vocab.json: piece -> id."""
    vocab: dict[str, int] = parse_json(content, where, dict[str, Id], error=TokenizerError, fix="Copy it again.")
    if "<unk>" not in vocab:
        raise TokenizerError(f"{where} does not number pieces, <unk> among them. Copy it again.")
    return vocab


def _splitter(tokens: Mapping[str, AddedToken]) -> re.Pattern[str]:
    """Finds tokens in a text, the longest first, with the white space that they take along."""
    names = sorted(tokens, key=len, reverse=True)
    before, behind = {True: r"(?<!\s)\s*", False: ""}, {True: r"\s*", False: ""}
    return re.compile(
        "("
        + "|".join(before[tokens[name].lstrip] + re.escape(name) + behind[tokens[name].rstrip] for name in names)
        + ")"
    )
