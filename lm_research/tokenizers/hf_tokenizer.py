"""Tokenizers of Hugging Face directories, through the `tokenizers` library."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

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

    Where it lacks a role, cls and bos, and sep and eos, stand in for each other, and eos for pad; the mask has no stand-in. Of its
    `files` some are vocabulary files of older formats that it was made from or that lay beside it.

    Attributes:
      backend: the `tokenizers.Tokenizer`; what changes it is up to the caller.
    """

    supports_offsets = True

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer; raises a TokenizerError when the files hold no tokenizer, or a damaged one."""
        self.name = settings.where
        kind: Kind | None
        names = () if TOKENIZER_JSON in files else hf_vocabularies.find_vocabulary(files, settings)
        if names:
            self.backend, built = hf_vocabularies.build(files, names, settings)
            settings = settings if settings.kind else read_settings(files, settings.where, built)
            kind = built
            own = add_tokens(self.backend, kind, settings, whole=False)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, own)
            hf_vocabularies.set_post_processor(self.backend, built, settings, own, self.languages)
            spec = None
        else:
            self.backend, spec = parse_spec(files[TOKENIZER_JSON], f"{settings.where}/{TOKENIZER_JSON}")
            before, kind = self.backend.to_str(), settings.kind
            own = add_tokens(self.backend, kind, settings, whole=True)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, own)
            hf_vocabularies.apply_options(self.backend, settings, own, self.languages)
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
        facts = json.dumps([content, own, *spoken], sort_keys=True).encode()
        self.digest = hashlib.sha256(facts).hexdigest()
        self._vocab = self.backend.get_vocab()
        self.size = max(self._vocab.values()) + 1
        check_special_ids(self._spec, self.size, f"{settings.where}/{TOKENIZER_JSON}")
        self.roles = with_fallbacks({role: self._vocab[token] for role, token in own.items()})
        self.max_length = settings.max_length
        self.padding_side, self.truncation_side = settings.side("padding_side"), settings.side("truncation_side")
        self.uses_types = uses_types(settings, kind, self._spec.get("post_processor"))
        kept = {name: bytes(files[name]) for name in (*VOCABULARIES, TEMPLATE) if name in files}
        self.files = kept | self._describe(settings, kind, own)
        self._lock = threading.Lock()  # truncation is a state of the backend

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_files, (self.files, self.name)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        return cls(files, read_settings(files, where))

    def _describe(self, settings: Settings, kind: Kind | None, own: dict[str, str]) -> dict[str, bytes]:
        """The JSON files, so that this library and transformers read the same tokenizer from them."""
        config = {key: value for key, value in settings.config.items() if key != "added_tokens_decoder"}
        for role in ROLES:
            config.pop(f"{role}_token", None)
        config["tokenizer_class"] = config.get("tokenizer_class") or (
            kind.name if kind else settings.class_name or PLAIN_CLASS
        )
        config |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        config |= {"model_max_length": self.max_length} if self.max_length else {}
        names = {f"{role}_token": token for role, token in own.items()}
        added = self.backend.get_added_tokens_decoder()
        config["added_tokens_decoder"] = {str(number): _as_json(token) for number, token in sorted(added.items())}
        contents = {"tokenizer_config.json": config | names, "special_tokens_map.json": names}
        files = {
            name: (json.dumps(content, indent=2, sort_keys=True) + "\n").encode() for name, content in contents.items()
        }
        return {TOKENIZER_JSON: self._text.encode()} | files

    @property
    def main_file(self) -> str:
        return TOKENIZER_JSON

    def library_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(self.files[TOKENIZER_JSON])
        return spec

    # ------------------------------------------------------------------------------------------ special tokens

    @functools.cached_property
    def frame(self) -> Frame:
        if self.languages is not None:
            return super().frame
        ids, special = self._probe.ids, self._probe.special_tokens_mask
        inner = np.flatnonzero(np.asarray(special) == 0)
        first, last = (int(inner[0]), int(inner[-1]) + 1) if len(inner) else (len(ids), len(ids))
        return Frame(tuple(ids[:first]), tuple(ids[last:]))

    @property
    def adds_end_token(self) -> bool:
        return self._probe.special_tokens_mask[-1:] == [1]

    @functools.cached_property
    def _probe(self) -> tokenizers.Encoding:
        return self.encodings(["a"])[0]

    def num_special_tokens(self, pair: bool = False) -> int:
        return self.backend.num_special_tokens_to_add(pair)

    # ------------------------------------------------------------------------------------------ text to ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with guarded_use(self.name):
            return _ids(self._literal, texts)

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        with guarded_use(self.name):
            return _ids(self._going_on, texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of one text: together those of the words with a space between them.

        Of byte-level tokenizers the first word gets a space too, as with add_prefix_space=True, which transformers asks for where
        texts come word by word.
        """
        spaced = [after_space(word) for word in words]
        if has_type(self._spec.get("pre_tokenizer"), "ByteLevel"):
            return self.encode_after(spaced)
        return self.encode_batch(words[:1]) + self.encode_after(spaced[1:])

    @property
    def adds_space(self) -> bool:
        return self._going_on is not self._literal

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The backend without the special tokens that a text could name."""
        return _plain(literal_form(self._spec, self.special_ids))

    @functools.cached_property
    def _going_on(self) -> tokenizers.Tokenizer:
        """`_literal` without the space before a text; itself where a space in the text then makes no difference."""
        spec = json.loads(self._literal.to_str())
        if (changed := without_prefix_space(spec)) == spec:
            return self._literal
        bare = _plain(json.dumps(changed))
        return self._literal if _parts(bare, " a") == _parts(bare, "a") else bare

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
        own = [replace_surrogates(text) for text in texts]
        with self._lock, guarded_use(self.name):
            if max_length is not None:
                side = side or self.truncation_side
                self.backend.enable_truncation(max_length, stride=stride, strategy=strategy, direction=side)
            try:
                return self.backend.encode_batch(own, add_special_tokens=add_special_tokens)
            finally:
                self.backend.no_truncation()

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        limit = self._checked(limit, bool(texts) and isinstance(texts[0], tuple), add_special_tokens)
        return self.encodings(texts, add_special_tokens=add_special_tokens, max_length=limit)

    def _target_rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        """Rows of texts to be written, with the code of their language."""
        if self.languages is None or not add_special_tokens:
            return self._rows(texts, limit, add_special_tokens)
        return self._writing.encodings(texts, max_length=self._checked(limit, False, True))

    @functools.cached_property
    def _writing(self) -> Self:
        """The tokenizer of the other side, which reads the language that this one writes."""
        return self.in_languages(source=self.languages.target if self.languages else "")

    # ------------------------------------------------------------------------------------------ ids to text

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        kept = valid_ids(ids, self.size)
        kept = kept[~self.is_special[kept]] if skip_special_tokens else kept
        with guarded_use(self.name):
            return self.backend.decode(kept.tolist(), skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(int(token)) for token in ids]

    def _piece(self, token: int) -> str:
        name = self.token_name(token)
        if name is None:
            return f"<{token}>"
        return name if self.is_special[token] else readable(name, self._spec)

    # ------------------------------------------------------------------------------------------ about the ids

    def token_id(self, token: str) -> int | None:
        return self._vocab.get(token)

    def token_name(self, token: int) -> str | None:
        return self.backend.id_to_token(token)

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        special = np.ones(self.size, dtype=bool)  # ids without a token stand for no text either
        special[list(self._vocab.values())] = False
        special[[number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]] = True
        special[list(self.roles.values())] = True
        return special

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of text that each token stands for, its space included; 0 for special ids.

        WordPiece tokens do not tell whether a space came before them: here every one that begins a word counts one, but
        for punctuation and for the scripts that it takes apart by characters.
        """
        return np.where(self.is_special, 0, byte_lengths(self._vocab, self.size, self._spec)).astype(np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Array of bool [size]: the token begins with a space or is a line break, or, of WordPiece, does not go on with a word."""
        return np.where(self.is_special, False, word_starts(self._vocab, self.size, self._spec))


def _plain(spec: str) -> tokenizers.Tokenizer:
    """The backend of a tokenizer.json that only makes ids of texts."""
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
    """A text as the model of a backend meets it."""
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


def _as_json(token: tokenizers.AddedToken) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
