"""Tokenizers with sentencepiece models that split texts into pieces and a vocab.json that numbers the pieces: Marian and M2M-100.

Marian has two models, source.spm for encoder inputs and target.spm for decoder targets; a text may begin with a code such as >>fra<<
that selects the target language of a multilingual model. M2M-100 has one model and language codes. Pieces that are not in vocab.json
are unknown. The tokenizers library has no such model, so sentencepiece splits the texts; files are kept unchanged.
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
from typing_extensions import override

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

_MAX_LENGTH = 512  # maximum number of tokens of Marian's models if the files do not set it
_CODE = re.compile(">>.*?<<", re.DOTALL)


class NumberedPieces(Tokenizer):
    """A tokenizer made of sentencepiece models and a vocab.json."""

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer instead. Raises a TokenizerError if a file is damaged or of an unsupported format."""
        self.name, kind = settings.where, settings.kind
        assert kind is not None, "from_files passes one"
        if settings.config.get("separate_vocabs"):
            raise TokenizerError(
                f"{self.name}: separate_vocabs is true in tokenizer_config.json, but a separate target vocabulary (target_vocab.json) "
                "is not supported. Use a model whose encoder and decoder share vocab.json."
            )
        names = hf_vocabularies.FILES[kind.vocabulary]
        protos = [files[name] for name in names[:-1]]
        self._source, self._target = (_open(files[name], f"{self.name}/{name}") for name in (names[0], names[-2]))
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
        saved_names = (*names, *(name for name in SETTINGS if name != "config.json"), TEMPLATE)
        self.files = {name: bytes(files[name]) for name in saved_names if name in files}
        self.files.setdefault("tokenizer_config.json", json.dumps({"tokenizer_class": kind.name}).encode() + b"\n")
        spoken_by = [self.languages.source, self.languages.target] if self.languages else []
        facts = json.dumps([self._vocab, self.roles, spoken_by], sort_keys=True).encode()
        self.digest = hashlib.sha256(b"".join(protos) + facts).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_files, (self.files, self.name)

    @classmethod
    @override
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        guess = "MarianTokenizer" if "source.spm" in files else "M2M100Tokenizer"
        return cls(files, read_settings(files, where, KIND[guess]))

    @property
    @override
    def main_file(self) -> str:
        return "vocab.json"

    @override
    def num_special_tokens(self, pair: bool = False) -> int:
        return self.frame.size

    # ------------------------------------------------------------------------------------------ text to ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text without adding or recognizing special tokens, except the code that a text for Marian may begin with."""
        return self._encode(self._source, texts)

    @override
    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(self._target, texts)

    @override
    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(self._continuing, texts)

    @property
    @override
    def adds_space(self) -> bool:
        return self._continuing is not self._source

    @functools.cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        """The source model without the space before a text; `_source` itself if it adds none, or folds spaces."""
        bare, spaced = (self._source.normalize(text) for text in ("a", " a"))
        if not bare.startswith(SPACE) or spaced == bare:
            return self._source
        return _open(self._source.serialized_model_proto() + NO_PREFIX, self.name)

    def _encode(self, model: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
        texts = replace_surrogates(list(texts))
        codes = [match.group() if self._has_codes and (match := _CODE.match(text)) else "" for text in texts]
        cut = model.encode([text[len(code) :] for text, code in zip(texts, codes, strict=True)], out_type=str)
        rows = ([code, *pieces] if code else pieces for code, pieces in zip(codes, cut, strict=True))
        return [[self._vocab.get(piece, self.unk_id) for piece in row] for row in rows]

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(self._source, texts, limit, self.frame if add_special_tokens else ((), ()))

    def _target_rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(self._target, texts, limit, self.target_frame if add_special_tokens else ((), ()))

    def _framed(
        self,
        model: sentencepiece.SentencePieceProcessor,
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
            encoded = [
                [self._vocab[part.strip()]] if part.strip() in self._named else self._encode(model, [part])[0]
                for part in parts
            ]
            ids = [token for part in encoded for token in part]
            start = 0 if max_ids is None or self.truncation_side == "right" else max(0, len(ids) - max_ids)
            ids = [*head, *ids[start:][:max_ids], *tail]
            rows.append(Row(ids, [0] * len(ids)))
        return rows

    # ------------------------------------------------------------------------------------------ ids to text

    @override
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        text, pieces = "", []
        for token in [int(token) for token in np.ravel(ids) if int(token) in self._names]:
            if token not in self._specials:
                pieces.append(self._names[token])
            elif not skip_special_tokens:
                text += self._target.decode_pieces(pieces) + self._names[token] + " " * self._has_codes
                pieces = []
        return str(text + self._target.decode_pieces(pieces)).replace(SPACE, " ").strip()

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

    @functools.cached_property
    @override
    def token_bytes(self) -> np.ndarray:
        return np.where(self.is_special, 0, byte_lengths(self._vocab, self.size, self._spec)).astype(np.int32)

    @functools.cached_property
    @override
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
    """Parse vocab.json: piece -> id."""
    vocab: dict[str, int] = parse_json(content, where, dict[str, Id], error=TokenizerError, fix="Copy it again.")
    if "<unk>" not in vocab:
        raise TokenizerError(f"{where} has no id for <unk>, so it is not a vocabulary of pieces. Copy it again.")
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
