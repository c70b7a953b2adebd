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
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import sentencepiece
from typing_extensions import override

from lm_research.common.texts import replace_surrogates
from lm_research.errors import TokenizerError
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import SPACE
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_settings import KIND, SETTINGS, Settings, read_settings
from lm_research.tokenizers.hf_text import byte_lengths, word_starts
from lm_research.tokenizers.inputs import Row, Texts
from lm_research.tokenizers.languages import M2M_100, WMT_21
from lm_research.tokenizers.numbered_tokens import NumberedTokens, read_vocab
from lm_research.tokenizers.sentencepiece_model import NO_PREFIX, read_model

_MAX_LENGTH = 512  # maximum number of tokens of Marian's models if the files do not set it
_CODE = re.compile(">>.*?<<", re.DOTALL)


class NumberedPieces(NumberedTokens):
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
        vocab = read_vocab(files[names[-1]], f"{self.name}/{names[-1]}", "<unk>")
        self.languages, self._has_codes = None, not kind.languages
        spoken: dict[str, int] = {}
        if kind.languages:
            codes = WMT_21 if settings.config.get("language_codes") == "wmt21" else M2M_100
            spoken = {code: len(vocab) + number for number, code in enumerate(codes)}
            vocab |= {f"__{code}__": number for code, number in spoken.items()}
            self.languages = hf_vocabularies.languages_among(spoken, kind, settings)
        self._number(vocab, settings, spoken)
        self.max_length = self.max_length or (_MAX_LENGTH if self._has_codes else None)
        self._spec = {"model": {"type": "Unigram", "byte_fallback": "<0x00>" in self._vocab}}
        saved_names = (*names, *(name for name in SETTINGS if name != "config.json"), TEMPLATE)
        self.files = {name: bytes(files[name]) for name in saved_names if name in files}
        self.files.setdefault("tokenizer_config.json", json.dumps({"tokenizer_class": kind.name}).encode() + b"\n")
        spoken_by = [self.languages.source, self.languages.target] if self.languages else []
        facts = json.dumps([self._vocab, self.roles, spoken_by], sort_keys=True).encode()
        self.digest = hashlib.sha256(b"".join(protos) + facts).hexdigest()

    @classmethod
    @override
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        guess = "MarianTokenizer" if "source.spm" in files else "M2M100Tokenizer"
        return cls(files, read_settings(files, where, KIND[guess]))

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
        return self._framed(
            lambda text: self._encode(self._source, [text])[0],
            texts,
            limit,
            self.frame if add_special_tokens else ((), ()),
        )

    def _target_rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[Row]:
        return self._framed(
            lambda text: self._encode(self._target, [text])[0],
            texts,
            limit,
            self.target_frame if add_special_tokens else ((), ()),
        )

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
