"""Tokenizers of Hugging Face directories, through the `tokenizers` library.

    tokenizer = load_tokenizer("path/of/a/model")
    batch = tokenizer(["a text", "another"], padding=True, truncation=True, max_length=128)

`load_tokenizer` opens whatever a path holds: a directory of a published model, a tokenizer.json, or a sentencepiece model
of ours. `HFTokenizer` and `lm_research.tokenizers.base.Tokenizer` offer the same (see TextTokenizer there).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lm_research.common.documents import json_value, read_bytes
from lm_research.common.texts import whole
from lm_research.errors import TokenizerError
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import ROLES as OUR_ROLES
from lm_research.tokenizers.base import TextTokenizer, Tokenizer, after_space, known_ids, write_files
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_inputs import pair_up, stack_rows
from lm_research.tokenizers.hf_settings import (
    KIND,
    PLAIN_CLASS,
    ROLES,
    SENTENCES,
    SETTINGS,
    Kind,
    Settings,
    read_settings,
)
from lm_research.tokenizers.hf_text import byte_lengths, going_on, literal_form, readable, uses, word_starts
from lm_research.tokenizers.languages import spoken
from lm_research.tokenizers.spec import FIX, check_ends, in_use, parse_spec
from lm_research.tokenizers.special_roles import add_tokens, uses_types

WHOLE = "tokenizer.json"
STARTS = (WHOLE, "vocab.txt", "vocab.json", *hf_vocabularies.PIECES)  # a folder with any of these holds a tokenizer
_LOOKED_FOR = (
    WHOLE,
    "vocab.txt",
    "vocab.json with merges.txt or with source.spm and target.spm",
    *hf_vocabularies.PIECES,
)
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "source.spm", "target.spm", *hf_vocabularies.PIECES)
_NUMBERED = {"two models": "MarianTokenizer", "one model": "M2M100Tokenizer"}  # see numbered_pieces.py
# Whose place each role takes when a tokenizer has none of its own, first come.
_STAND_INS = {"cls": ("bos",), "bos": ("cls",), "sep": ("eos",), "eos": ("sep",), "pad": ("eos", "sep")}


def load_tokenizer(path: pathlib.Path | str) -> TextTokenizer:
    """The tokenizer at a path.

    Args:
      path: a sentencepiece .model file, a tokenizer.json, or a folder. Of a folder the first of these counts:
        tokenizer.json; vocab.txt (WordPiece); vocab.json with merges.txt (byte-level BPE); spiece.model,
        sentencepiece.bpe.model or tokenizer.model. tokenizer_config.json, special_tokens_map.json, added_tokens.json and
        config.json beside it tell its class, special tokens and options. The folder of a training run stands for that
        of its newest checkpoint's files.

    Raises:
      TokenizerError: there is nothing like that, it is damaged, or its class is not known here.
    """
    try:
        path = pathlib.Path(path).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
        kept = [file for name in STARTS for file in path.glob(f"checkpoints/*/files/{name}")] if is_folder else []
        folders = [file.parents[1] for file in kept]
        steps = {int(folder.name): folder for folder in folders if re.fullmatch("[0-9]{1,18}", folder.name)}
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a name that is too long, of a user that is not there, with a NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TokenizerError(
            f"The tokenizer {str(path)[:200]!r} cannot be opened: {reason}. Give another path."
        ) from error
    if is_folder:
        path = steps[max(steps)] / "files" if steps else path
        return tokenizer_from_files(_read(path, WHOLE, *_VOCABULARIES, *SETTINGS, SENTENCES, TEMPLATE), str(path))
    if path.suffix == ".json" and is_file:
        files = _read(path.parent, *SETTINGS, TEMPLATE) if path.name == WHOLE else {}
        return tokenizer_from_files(files | {WHOLE: read_bytes(path, error=TokenizerError, fix=FIX)}, str(path))
    return Tokenizer.load(path)


def _read(folder: pathlib.Path, *names: str) -> dict[str, bytes]:
    """Those of the files that a folder has."""
    found = [name for name in names if os.path.lexists(folder / name)]
    return {name: read_bytes(folder / name, error=TokenizerError, fix=FIX) for name in found}


def tokenizer_from_files(files: Mapping[str, bytes], where: str) -> TextTokenizer:
    """The tokenizer that a folder with these files holds.

    Args:
      files: name -> content; others than load_tokenizer looks at do not matter.
      where: their folder, for messages.

    Raises:
      TokenizerError: as load_tokenizer.
    """
    settings = read_settings(files, where)
    if WHOLE in files and not (settings.kind and settings.kind.vocabulary in _NUMBERED):
        return HFTokenizer(files, settings)
    if _is_plain(files, settings):
        tokenizer = Tokenizer.parse(files["tokenizer.model"], f"{where}/tokenizer.model")
        tokenizer.files |= {name: files[name] for name in (TEMPLATE,) if name in files}
        return tokenizer
    names = hf_vocabularies.find_vocabulary(files, settings)
    if not names:
        raise TokenizerError(
            f"{where} is a folder without a tokenizer: looked for {', '.join(_LOOKED_FOR)}. Give the folder of a Hugging Face "
            "model, a tokenizer.json or a sentencepiece .model file in config.tokenizer.path, or leave that key empty to "
            "train a tokenizer on the corpus."
        )
    for sort, name in _NUMBERED.items():
        if names == hf_vocabularies.FILES[sort]:
            from lm_research.tokenizers.numbered_pieces import NumberedPieces  # which is made of this file's class

            return NumberedPieces(files, settings if settings.kind else read_settings(files, where, KIND[name]))
    return HFTokenizer(files, settings)


def in_languages(tokenizer: TextTokenizer, source: str = "", target: str = "") -> TextTokenizer:
    """The same tokenizer for texts in another language; "" keeps one.

    Raises:
      TokenizerError: it marks no text with its language, or has no such language.
    """
    if not (source or target):
        return tokenizer
    languages = spoken(tokenizer.languages, source or target)
    for code in filter(None, (source, target)):
        languages.id_of(code)
    name = "tokenizer_config.json"
    wanted = {"src_lang": source or languages.source, "tgt_lang": target or languages.target or None}
    config = json.dumps(json_value(tokenizer.files[name]) | wanted, indent=2, sort_keys=True) + "\n"
    return tokenizer_from_files(tokenizer.files | {name: config.encode()}, tokenizer.name)


def _is_plain(files: Mapping[str, bytes], settings: Settings) -> bool:
    """Whether a folder's only vocabulary is a sentencepiece model that one of our own models was trained with.

    Of the published classes known here only Llama's calls its model tokenizer.model; ours begins with our names of roles.
    """
    if "tokenizer.model" not in files or any(name in files for name in _VOCABULARIES if name != "tokenizer.model"):
        return False
    if not settings.asked or settings.kind and settings.kind.name != "LlamaTokenizer":
        return True
    try:
        pieces = hf_vocabularies.spm.read_model(files["tokenizer.model"]).pieces
    except ValueError:
        return False
    return [text for text, *_ in pieces[: len(OUR_ROLES)]] == [names[0] for names in OUR_ROLES.values()]


def with_stand_ins(roles: Mapping[str, int]) -> dict[str, int]:
    """Role -> id, of roles that others stand in for too."""
    found = {role: [other for other in others if other in roles] for role, others in _STAND_INS.items()}
    return {role: roles[others[0]] for role, others in found.items() if others} | dict(roles)


class HFTokenizer:
    """A tokenizer of a Hugging Face directory.

    Attributes:
      roles: role ("bos", "eos", "unk", "sep", "pad", "cls", "mask") -> id, of the roles that it has. Where it lacks one,
        cls and bos, and sep and eos, stand in for each other, and eos for pad; the mask has no stand-in.
      size: number of ids, added tokens included (the highest id + 1).
      digest: SHA-256, in hexadecimal, of its content: vocabulary, rules and roles.
      files: name -> content of what must travel with a model: tokenizer.json, tokenizer_config.json,
        special_tokens_map.json, a chat template, and vocabulary files of older formats that it was made from or that lay
        beside it.
      max_length: tokens of the longest text that its model takes, None when unlimited.
      uses_types: whether its models tell a pair's two texts apart by types.
      languages: those that it marks texts with; None if it marks none.
      padding_side, truncation_side: "right" or "left".
      backend: the `tokenizers.Tokenizer`; what changes it is up to the caller.
    """

    def __init__(self, files: Mapping[str, bytes], settings: Settings) -> None:
        """Use load_tokenizer; raises a TokenizerError when the files hold no tokenizer, or a damaged one."""
        self.name = settings.where
        names = () if WHOLE in files else hf_vocabularies.find_vocabulary(files, settings)
        if names:
            self.backend, kind = hf_vocabularies.build(files, names, settings)
            settings = settings if settings.kind else read_settings(files, settings.where, kind)
            own = add_tokens(self.backend, kind, settings, whole=False)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, own)
            hf_vocabularies.wrap(self.backend, kind, settings, own, self.languages)
            spec = None
        else:
            self.backend, spec = parse_spec(files[WHOLE], f"{settings.where}/{WHOLE}")
            before, kind = self.backend.to_str(), settings.kind
            own = add_tokens(self.backend, kind, settings, whole=True)
            self.languages = hf_vocabularies.find_languages(self.backend, kind, settings, own)
            hf_vocabularies.follow_options(self.backend, settings, own, self.languages)
            if self.backend.to_str() != before:
                spec = None
        if settings.lowercases and hf_vocabularies.lower_first(self.backend):
            spec = None
        self._text = self.backend.to_str(pretty=True) if spec is None else files[WHOLE].decode("utf-8")
        self.backend.no_padding()
        self.backend.no_truncation()
        self._spec = spec or json.loads(self._text)
        content = {key: value for key, value in self._spec.items() if key not in ("padding", "truncation")}
        spoken = [[self.languages.source, self.languages.target]] if self.languages else []
        content = json.dumps([content, own, *spoken], sort_keys=True).encode()
        self.digest = hashlib.sha256(content).hexdigest()
        self._vocab = self.backend.get_vocab()
        self.size = max(self._vocab.values()) + 1
        check_ends(self._spec, self.size, f"{settings.where}/{WHOLE}")
        self.roles = with_stand_ins({role: self._vocab[token] for role, token in own.items()})
        self.max_length = settings.max_length
        self.padding_side, self.truncation_side = settings.side("padding_side"), settings.side("truncation_side")
        self.uses_types = uses_types(settings, kind, self._spec.get("post_processor"))
        kept = {name: bytes(files[name]) for name in (*_VOCABULARIES, TEMPLATE) if name in files}
        self.files = kept | self._describe(settings, kind, own)
        self._lock = threading.Lock()  # truncation is a state of the backend

    def __reduce__(self) -> tuple:
        return _reopen, (self.files, self.name)

    def _describe(self, settings: Settings, kind: Kind | None, own: dict[str, str]) -> dict[str, bytes]:
        """The JSON files, so that this library and transformers read the same tokenizer from them."""
        config = {key: value for key, value in settings.config.items() if key != "added_tokens_decoder"}
        for role in ROLES:
            config.pop(f"{role}_token", None)
        config["tokenizer_class"] = config.get("tokenizer_class") or (
            kind.name if kind else settings.asked or PLAIN_CLASS
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
        return {WHOLE: self._text.encode()} | files

    def save(self, path: pathlib.Path) -> None:
        """Writes the tokenizer.json, which appears only when it is whole; save_files writes what belongs to it too."""
        write_files({path.name: self.files[WHOLE]}, path.parent)

    def save_files(self, directory: pathlib.Path | str) -> None:
        """Writes `files` into a folder, which is made if need be; load_tokenizer opens it."""
        write_files(self.files, pathlib.Path(directory))

    # ------------------------------------------------------------------------------------------ roles

    def _role(self, role: str) -> int:
        if role not in self.roles:
            raise TokenizerError(
                f"The tokenizer {self.name} has no {role} token, which this use of it needs. Choose an objective or task that "
                f"does without, or name its token: {role}_token in tokenizer_config.json."
            )
        return self.roles[role]

    pad_id = property(lambda self: self._role("pad"), doc="Id of padding; raises a TokenizerError when there is none.")
    unk_id = property(lambda self: self._role("unk"), doc="Id of the unknown; raises a TokenizerError as pad_id.")
    cls_id = property(lambda self: self._role("cls"), doc="Id that begins a text; raises a TokenizerError as pad_id.")
    sep_id = property(lambda self: self._role("sep"), doc="Id that ends a text; raises a TokenizerError as pad_id.")
    mask_id = property(lambda self: self._role("mask"), doc="Id of the mask; raises a TokenizerError as pad_id.")
    bos_id = property(lambda self: self._role("bos"), doc="Id that begins a text; raises a TokenizerError as pad_id.")
    eos_id = property(lambda self: self._role("eos"), doc="Id that ends a text; raises a TokenizerError as pad_id.")

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name, None when it is not in the vocabulary."""
        return self._vocab.get(token)

    # ------------------------------------------------------------------------------------------ text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it and with none found in it: "[MASK]" is six characters."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as `encode`, on several threads. Calling the tokenizer finds special tokens in texts."""
        with in_use(self.name):
            return _ids(self._literal, texts)

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text where it goes on with another one: a tokenizer that puts a space before a text puts none here.

        Tokenizers that fold white space cannot tell " a" from "a"; they do the same here as at the beginning.
        """
        with in_use(self.name):
            return _ids(self._going_on, texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of one text: together those of the words with a space between them.

        Of byte-level tokenizers the first word gets a space too, as with add_prefix_space=True, which transformers asks for where
        texts come word by word.
        """
        spaced = [after_space(word) for word in words]
        if uses(self._spec.get("pre_tokenizer"), "ByteLevel"):
            return self.encode_after(spaced)
        return self.encode_batch(words[:1]) + self.encode_after(spaced[1:])

    @property
    def adds_space(self) -> bool:
        """Whether a text gets a space before it that it would not get after another one."""
        return self._going_on is not self._literal

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, int32, and how many each has, int64."""
        rows = self.encode_batch(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts to be written, which are those of texts to be read."""
        return self.encode_batch(texts)

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The backend without the special tokens that a text could name."""
        return _plain(literal_form(self._spec, self.special_ids))

    @functools.cached_property
    def _going_on(self) -> tokenizers.Tokenizer:
        """`_literal` without the space before a text; itself where a space in the text then makes no difference."""
        spec = json.loads(self._literal.to_str())
        if (changed := going_on(spec)) == spec:
            return self._literal
        bare = _plain(json.dumps(changed))
        return self._literal if _parts(bare, " a") == _parts(bare, "a") else bare

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        text_pair: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        return_offsets: bool = False,
    ) -> dict[str, np.ndarray]:
        """Model inputs for a text, a list of texts, or as many pairs, as transformers' tokenizers give them.

        Special tokens that a text names ("[MASK]", "<extra_id_0>") are taken as such.

        Args:
          text, text_pair: the texts, and the second ones of pairs.
          text_target: texts to be written for them, in the form of the language that the tokenizer writes.
          padding: False; True or "longest" to the longest row; "max_length" to max_length.
          truncation: whether to cut rows to max_length, from the longer text of a pair first.
          max_length: in tokens, special ones included; None takes the model's own.
          padding_side: "right" or "left"; None takes the tokenizer's own.
          add_special_tokens: put the family's special tokens around texts.
          return_offsets: give offset_mapping too.

        Returns:
          NumPy int32 arrays [B, L] (B = 1 for one text): input_ids, attention_mask, token_type_ids if uses_types, and
          offset_mapping [B, L, 2], the characters [from, to) of its text that each token covers. With text_target also labels,
          its ids; without text, its ids as input_ids.

        Raises:
          TokenizerError: rows differ in length and are not padded, or max_length is needed and not known or too short.
        """
        if padding not in (False, True, "longest", "max_length"):
            raise TokenizerError(f'padding={padding!r} is not known; valid: False, True, "longest", "max_length".')
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise TokenizerError(f'padding_side={side!r} is not known; valid: "left", "right".')
        limit = self.max_length if max_length is None else max_length
        if padding == "max_length" and limit is None:
            raise TokenizerError(f'{self.name} names no longest length: give max_length with padding="max_length".')
        cut = limit if truncation else None
        length = limit if padding == "max_length" else 0 if padding else None
        how = (length, self.pad_id if padding else 0, side == "left", self.uses_types, return_offsets)
        found = {}
        if text_target is not None:
            found = stack_rows(self._target_rows(pair_up(text_target, None), cut, add_special_tokens), *how)
            if text is None:
                return found
            found = {"labels": found["input_ids"]}
        return stack_rows(self._rows(pair_up(text, text_pair), cut, add_special_tokens), *how) | found

    def _target_rows(self, texts: list, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        """Rows of texts to be written, with the code of their language."""
        if self.languages is None or not add_special_tokens:
            return self._rows(texts, limit, add_special_tokens)
        return self._writing._rows(texts, limit, True)

    @functools.cached_property
    def _writing(self) -> HFTokenizer:
        """The tokenizer of the other side, which reads the language that this one writes."""
        return in_languages(self, source=self.languages.target)

    def _rows(self, texts: list, limit: int | None, add_special_tokens: bool) -> list[tokenizers.Encoding]:
        if limit is None:
            with self._lock, in_use(self.name):
                return self.backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        pairs = bool(texts) and isinstance(texts[0], tuple)
        room = limit - (self.backend.num_special_tokens_to_add(pairs) if add_special_tokens else 0)
        if room < 1 + pairs:
            raise TokenizerError(
                f"max_length={limit} leaves no room for {'two texts' if pairs else 'a text'} beside special tokens: give at "
                f"least {limit - room + 1 + pairs}."
            )
        with self._lock, in_use(self.name):
            self.backend.enable_truncation(limit, strategy="longest_first", direction=self.truncation_side)
            try:
                return self.backend.encode_batch(texts, add_special_tokens=add_special_tokens)
            finally:
                self.backend.no_truncation()

    # ------------------------------------------------------------------------------------------ ids to text

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """The text that ids stand for.

        Args:
          ids: an array or a list, of NumPy or JAX, or one of them. Those below 0, as labels that do not count have them, and past
            the vocabulary stand for no text.
          skip_special_tokens: whether special tokens stand for none either, or are written by their names.
        """
        kept = known_ids(ids, self.size)
        kept = kept[~self._is_special[kept]] if skip_special_tokens else kept
        with in_use(self.name):
            return self.backend.decode(kept.tolist(), skip_special_tokens=False)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        """The text of each row of ids, as `decode`."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One readable piece for each id: its text with ▁ for a space and ⏎ for a line break, <id> for none."""
        return [self._piece(int(token)) for token in ids]

    def _piece(self, token: int) -> str:
        name = self.backend.id_to_token(token)
        if name is None:
            return f"<{token}>"
        return name if self._is_special[token] else readable(name, self._spec)

    @functools.cached_property
    def keeps_newlines(self) -> bool:
        """Whether line breaks come back from the tokens."""
        probe = "a\nb"
        return self.decode(self.encode(probe)) == probe

    # ------------------------------------------------------------------------------------------ about the ids

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        special = np.ones(self.size, dtype=bool)  # ids without a token stand for no text either
        special[list(self._vocab.values())] = False
        special[[number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]] = True
        special[list(self.roles.values())] = True
        return special

    @functools.cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted int64 ids that stand for no text: roles, other special tokens, and ids that no token has."""
        return np.flatnonzero(self._is_special)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of text that each token stands for, its space included; 0 for special ids.

        WordPiece tokens do not tell whether a space came before them: here every one that begins a word counts one, but
        for punctuation and for the scripts that it takes apart by characters.
        """
        return np.where(self._is_special, 0, byte_lengths(self._vocab, self.size, self._spec)).astype(np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """bool [size]: the token begins with a space or is a line break, or, of WordPiece, does not go on with a word."""
        return word_starts(self._vocab, self.size, self._spec) & ~self._is_special


def _plain(spec: str) -> tokenizers.Tokenizer:
    """The backend of a tokenizer.json that only makes ids of texts."""
    backend = tokenizers.Tokenizer.from_str(spec)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _ids(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(whole(list(texts)), add_special_tokens=False)]


def _parts(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    """A text as the model of a backend meets it."""
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]


def _reopen(files: dict[str, bytes], where: str) -> TextTokenizer:
    return tokenizer_from_files(files, where)


def _as_json(token: tokenizers.AddedToken) -> dict[str, Any]:
    return {key: getattr(token, key) for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
