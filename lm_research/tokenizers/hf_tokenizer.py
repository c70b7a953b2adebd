"""Tokenizers of Hugging Face directories, through the `tokenizers` library."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from typing_extensions import override

import tokenizers
from lm_research.common.texts import replace_surrogates
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import Frame, Tokenizer, after_space
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_settings import (
    PLAIN_CLASS,
    ROLES,
    TOKENIZER_JSON,
    VOCABULARIES,
    Kind,
    Settings,
    read_settings,
)
from lm_research.tokenizers.hf_text import (
    byte_lengths,
    has_type,
    literal_form,
    readable,
    without_prefix_space,
    word_starts,
)
from lm_research.tokenizers.inputs import Texts, valid_ids
from lm_research.tokenizers.spec import check_special_ids, guarded_use, parse_spec
from lm_research.tokenizers.special_roles import add_tokens, uses_types, with_fallbacks


class HFTokenizer(Tokenizer):
    """A tokenizer of a Hugging Face directory.

    Missing roles fall back: cls and bos replace each other, so do sep and eos, and eos serves as pad; the mask has no fallback.
    `files` includes the vocabulary files of older formats that the folder has.

    Attributes:
      backend: the `tokenizers.Tokenizer`; treat it as read-only.
    """

    supports_offsets = True

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer instead. Raises a TokenizerError if the files contain no tokenizer, or a damaged one."""
        self.name = settings.where
        kind: Kind | None
        names = () if TOKENIZER_JSON in files else hf_vocabularies.find_vocabulary(files, settings)
        if names:
            self.backend, built = hf_vocabularies.build(files, names, settings)
            settings = settings if settings.kind else read_settings(files, settings.where, built)
            kind = built
            role_tokens = add_tokens(self.backend, kind, settings, whole=False)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, role_tokens)
            hf_vocabularies.set_post_processor(self.backend, built, settings, role_tokens, self.languages)
            spec = None
        else:
            self.backend, spec = parse_spec(files[TOKENIZER_JSON], f"{settings.where}/{TOKENIZER_JSON}")
            before, kind = self.backend.to_str(), settings.kind
            role_tokens = add_tokens(self.backend, kind, settings, whole=True)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, role_tokens)
            hf_vocabularies.apply_options(self.backend, settings, role_tokens, self.languages)
            if self.backend.to_str() != before:
                spec = None
        if settings.lowercases and hf_vocabularies.prepend_lowercase(self.backend):
            spec = None
        self._text = self.backend.to_str(pretty=True) if spec is None else files[TOKENIZER_JSON].decode("utf-8")
        self.backend.no_padding()
        self.backend.no_truncation()
        self._spec = spec or json.loads(self._text)
        content = {key: value for key, value in self._spec.items() if key not in ("padding", "truncation")}
        spoken = [[self.languages.source, self.languages.target]] if self.languages else []
        facts = json.dumps([content, role_tokens, *spoken], sort_keys=True).encode()
        self.digest = hashlib.sha256(facts).hexdigest()
        self._vocab = self.backend.get_vocab()
        self.size = max(self._vocab.values()) + 1
        check_special_ids(self._spec, self.size, f"{settings.where}/{TOKENIZER_JSON}")
        self.roles = with_fallbacks({role: self._vocab[token] for role, token in role_tokens.items()})
        self.max_length = settings.max_length
        self.padding_side, self.truncation_side = settings.side("padding_side"), settings.side("truncation_side")
        self.uses_types = uses_types(settings, kind, self._spec.get("post_processor"))
        vocabulary_files = {name: bytes(files[name]) for name in (*VOCABULARIES, TEMPLATE) if name in files}
        self.files = vocabulary_files | self._describe(settings, kind, role_tokens)
        self._lock = threading.Lock()  # truncation is a state of the backend

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_files, (self.files, self.name)

    @classmethod
    @override
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        return cls(files, read_settings(files, where))

    def _describe(self, settings: Settings, kind: Kind | None, role_tokens: dict[str, str]) -> dict[str, bytes]:
        """Write the JSON files from which this library and transformers read the same tokenizer."""
        config = {key: value for key, value in settings.config.items() if key != "added_tokens_decoder"}
        for role in ROLES:
            config.pop(f"{role}_token", None)
        config["tokenizer_class"] = config.get("tokenizer_class") or (
            kind.name if kind else settings.class_name or PLAIN_CLASS
        )
        config |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        config |= {"model_max_length": self.max_length} if self.max_length else {}
        names = {f"{role}_token": token for role, token in role_tokens.items()}
        added = self.backend.get_added_tokens_decoder()
        config["added_tokens_decoder"] = {str(number): _as_json(token) for number, token in sorted(added.items())}
        contents = {"tokenizer_config.json": config | names, "special_tokens_map.json": names}
        files = {
            name: (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() for name, content in contents.items()
        }
        return {TOKENIZER_JSON: self._text.encode()} | files

    @property
    @override
    def main_file(self) -> str:
        return TOKENIZER_JSON

    @override
    def library_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(self.files[TOKENIZER_JSON])
        return spec

    # ------------------------------------------------------------------------------------------ special tokens

    @functools.cached_property
    @override
    def frame(self) -> Frame:
        if self.languages is not None:
            return super().frame
        ids, special = self._probe.ids, self._probe.special_tokens_mask
        inner = np.flatnonzero(np.asarray(special) == 0)
        first, last = (int(inner[0]), int(inner[-1]) + 1) if len(inner) else (len(ids), len(ids))
        return Frame(tuple(ids[:first]), tuple(ids[last:]))

    @property
    @override
    def adds_end_token(self) -> bool:
        return self._probe.special_tokens_mask[-1:] == [1]

    @functools.cached_property
    def _probe(self) -> tokenizers.Encoding:
        return self.encodings(["a"])[0]

    @override
    def num_special_tokens(self, pair: bool = False) -> int:
        return self.backend.num_special_tokens_to_add(pair)

    # ------------------------------------------------------------------------------------------ text to ids

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with guarded_use(self.name):
            return _ids(self._literal, texts)

    @override
    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        with guarded_use(self.name):
            return _ids(self._continuing, texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Encode the words of one text separately; the concatenated ids are those of the words joined by spaces.

        Byte-level tokenizers put a space before the first word too, as with add_prefix_space=True, which transformers requires for
        texts given as words.
        """
        spaced = [after_space(word) for word in words]
        if has_type(self._spec.get("pre_tokenizer"), "ByteLevel"):
            return self.encode_after(spaced)
        return self.encode_batch(words[:1]) + self.encode_after(spaced[1:])

    @property
    @override
    def adds_space(self) -> bool:
        return self._continuing is not self._literal

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The backend without recognition of special tokens in a text."""
        return _plain(literal_form(self._spec, self.special_ids))

    @functools.cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """`_literal` without the space before a text, or `_literal` itself if that would make " a" and "a" the same."""
        spec = json.loads(self._literal.to_str())
        if (changed := without_prefix_space(spec)) == spec:
            return self._literal
        bare = _plain(json.dumps(changed))
        return self._literal if _parts(bare, " a") == _parts(bare, "a") else bare

    @override
    def encodings(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        stride: int = 0,
        strategy: str = "longest_first",
        side: str | None = None,
    ) -> list[tokenizers.Encoding]:
        clean = [replace_surrogates(text) for text in texts]
        with self._lock, guarded_use(self.name):
            if max_length is not None:
                side = side or self.truncation_side
                self.backend.enable_truncation(max_length, stride=stride, strategy=strategy, direction=side)
            try:
                return self.backend.encode_batch(clean, add_special_tokens=add_special_tokens)
            finally:
                self.backend.no_truncation()

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        limit = self._check_limit(limit, bool(texts) and isinstance(texts[0], tuple), add_special_tokens)
        return self.encodings(texts, add_special_tokens=add_special_tokens, max_length=limit)

    def _target_rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        """Encode decoder targets, with the code of the target language."""
        if self.languages is None or not add_special_tokens:
            return self._rows(texts, limit, add_special_tokens)
        return self._target_tokenizer.encodings(texts, max_length=self._check_limit(limit, False, True))

    @functools.cached_property
    def _target_tokenizer(self) -> Self:
        """This tokenizer with the target language as its source."""
        return self.in_languages(source=self.languages.target if self.languages else "")

    # ------------------------------------------------------------------------------------------ ids to text

    @override
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        text_ids = valid_ids(ids, self.size)
        text_ids = text_ids[~self.is_special[text_ids]] if skip_special_tokens else text_ids
        with guarded_use(self.name):
            return self.backend.decode(text_ids.tolist(), skip_special_tokens=False)

    @override
    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(int(token)) for token in ids]

    def _piece(self, token: int) -> str:
        name = self.token_name(token)
        if name is None:
            return f"<{token}>"
        return name if self.is_special[token] else readable(name, self._spec)

    # ------------------------------------------------------------------------------------------ about the ids

    @override
    def token_id(self, token: str) -> int | None:
        return self._vocab.get(token)

    @override
    def token_name(self, token: int) -> str | None:
        return self.backend.id_to_token(token)

    @functools.cached_property
    @override
    def is_special(self) -> np.ndarray:
        special = np.ones(self.size, dtype=bool)  # ids without a token count as special
        special[list(self._vocab.values())] = False
        special[[number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]] = True
        special[list(self.roles.values())] = True
        return special

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of text in each token, its space included; 0 for special ids.

        WordPiece tokens do not record the space before them: one is counted for each token that begins a word, except
        punctuation and characters of the scripts that WordPiece splits into characters.
        """
        return np.where(self.is_special, 0, byte_lengths(self._vocab, self.size, self._spec)).astype(np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Bool [size]: whether a token starts with a space or is a line break or, for WordPiece, does not continue a word."""
        return np.where(self.is_special, False, word_starts(self._vocab, self.size, self._spec))


def _plain(spec: str) -> tokenizers.Tokenizer:
    """Build the backend of a tokenizer.json for plain texts: no padding, truncation or special tokens."""
    backend = tokenizers.Tokenizer.from_str(spec)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _ids(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [
        encoding.ids
        for encoding in backend.encode_batch_fast(replace_surrogates(list(texts)), add_special_tokens=False)
    ]


def _parts(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    """Normalize and pre-tokenize a text into the parts that a backend's model gets."""
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


def _as_json(token: tokenizers.AddedToken) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
