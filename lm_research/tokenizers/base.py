"""The tokenizer contract: what every tokenizer offers to the rest of the library."""

from __future__ import annotations

import abc
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

import tokenizers
from lm_research.common.disk import write_atomically
from lm_research.common.documents import json_value
from lm_research.common.paths import as_path
from lm_research.errors import TokenizerError
from lm_research.tokenizers.inputs import Row, Texts, bert_rows, make_pairs, stack_rows
from lm_research.tokenizers.languages import Languages, require_languages

# Role -> the names that its token has in published models, the most specific first.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>", "<bos>"),
    "sep": ("[SEP]", "<sep>", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}
SPACE = "\u2581"  # sentencepiece's character for a space


class Frame(NamedTuple):
    """Special token ids before and after a text."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of ids before and after the text together."""
        return len(self.head) + len(self.tail)


class Tokenizer(abc.ABC):
    """A mapping from text to token ids and back.

    A subclass provides `roles`, `size`, `encode_batch` and `decode`; the other methods have defaults that build on these.

    Attributes:
      name: origin of the tokenizer, for messages.
      roles: role ("pad", "unk", "cls", "sep", "mask", "bos", "eos") -> id, for the roles that the tokenizer has.
      size: number of ids (the highest + 1).
      digest: SHA-256 of the content, in hexadecimal.
      files: name -> content of the files that must be saved with a model; load_tokenizer opens a folder that holds them.
      languages: the languages that texts are marked with; None for a tokenizer without language codes.
      max_length: maximum number of tokens that the model accepts, special tokens included; None when unlimited.
      uses_types: whether the tokenizer's models use token type ids to distinguish the two texts of a pair.
      padding_side, truncation_side: "right" or "left".
      adds_special_tokens: whether the files define the special tokens around a text, and special tokens in a text ("[MASK]") are
        recognized; otherwise each caller adds its own, and "[MASK]" in a text is plain characters.
      supports_offsets: whether `encodings` and `return_offsets` are supported.
    """

    name: str = "tokenizer"
    roles: Mapping[str, int]
    size: int
    digest: str = ""
    files: Mapping[str, bytes] = {}
    languages: Languages | None = None
    max_length: int | None = None
    uses_types: bool = False
    padding_side: str = "right"
    truncation_side: str = "right"
    adds_special_tokens: bool = True
    supports_offsets: bool = False

    # ------------------------------------------------------------------------------------------ files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        """Build the tokenizer from the contents of its files; `where` is their folder, for messages."""
        raise TokenizerError(f"{where}: a {cls.__name__} cannot be built from files.")

    @property
    def main_file(self) -> str:
        """The name in `files` of the file that defines the tokenizer without the others."""
        return next(iter(self.files))

    def save(self, path: pathlib.Path) -> None:
        """Write `main_file` atomically to `path`; save_files writes all files."""
        write_files({path.name: self.files[self.main_file]}, path.parent)

    def save_files(self, directory: pathlib.Path | str) -> None:
        """Write all `files` into a folder, which is created if missing."""
        write_files(self.files, as_path(directory))

    def library_spec(self) -> dict[str, Any]:
        """The content of an equivalent tokenizer.json; raises a TokenizerError if that format cannot express the tokenizer."""
        raise TokenizerError(f"The tokenizer {self.name} cannot be written as a tokenizer.json.")

    def in_languages(self, source: str = "", target: str = "") -> Self:
        """Return this tokenizer set to another source or target language; "" keeps the current one.

        Raises:
          TokenizerError: the tokenizer has no language codes, or not this one.
        """
        if not (source or target):
            return self
        languages = require_languages(self.languages, source or target)
        for code in filter(None, (source, target)):
            languages.id_of(code)
        name = "tokenizer_config.json"
        changes = {"src_lang": source or languages.source, "tgt_lang": target or languages.target or None}
        config = json.dumps(json_value(self.files[name]) | changes, indent=2, sort_keys=True) + "\n"
        return self.from_files({**self.files, name: config.encode()}, self.name)

    # ------------------------------------------------------------------------------------------ special tokens

    def role_id(self, role: str) -> int:
        """Id of the token with a role; raises a TokenizerError if the tokenizer has none."""
        if role not in self.roles:
            raise TokenizerError(
                f"The tokenizer {self.name} has no {role} token, which is needed here. Choose an objective or task that does not need it, "
                f"or set {role}_token in tokenizer_config.json."
            )
        return self.roles[role]

    pad_id = property(lambda self: self.role_id("pad"), doc="Id of padding; raises as `role_id` does.")
    unk_id = property(lambda self: self.role_id("unk"), doc="Id of the unknown token.")
    cls_id = property(lambda self: self.role_id("cls"), doc="Id that begins a text.")
    sep_id = property(lambda self: self.role_id("sep"), doc="Id that ends a text.")
    mask_id = property(lambda self: self.role_id("mask"), doc="Id of the mask.")
    bos_id = property(lambda self: self.role_id("bos"), doc="Id that begins a text.")
    eos_id = property(lambda self: self.role_id("eos"), doc="Id that ends a text.")

    @property
    def frame(self) -> Frame:
        """Special tokens around an encoder input: those that the files define, or else only the end token."""
        if self.languages is not None:
            return Frame(*self.languages.frame_ids(self.languages.source, self.eos_id))
        return Frame((), (self.eos_id,))

    @property
    def target_frame(self) -> Frame:
        """Special tokens around a decoder target: the same before the text as for an encoder input, and the end token after it.

        Tokenizers with language codes frame a target as they frame a source, with the code of the target language.
        """
        if self.languages is not None:
            return Frame(*self.languages.frame_ids(self.languages.target_or_source, self.eos_id))
        return Frame(self.frame.head, (self.eos_id,))

    @property
    def call_frame(self) -> Frame:
        """Special tokens that calling the tokenizer adds around one text."""
        return self.frame if self.adds_special_tokens else Frame((self.cls_id,), (self.sep_id,))

    @property
    def adds_end_token(self) -> bool:
        """Whether encoder inputs end with a special token."""
        return bool(self.frame.tail)

    def num_special_tokens(self, pair: bool = False) -> int:
        """Number of special tokens that a call adds to a text, or to a pair of texts."""
        return 2 + pair

    # ------------------------------------------------------------------------------------------ text to ids

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text without adding or recognizing special tokens: "[MASK]" in a text is six characters."""

    def encode(self, text: str) -> list[int]:
        """Encode one text as `encode_batch` does."""
        return self.encode_batch([text])[0]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode all texts into one concatenated int32 array of ids, and return it with the int64 length of each text."""
        rows = self.encode_batch(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode decoder targets; differs from `encode_batch` only for tokenizers with a separate target model."""
        return self.encode_batch(texts)

    @property
    def adds_space(self) -> bool:
        """Whether encoding prepends a space to a text; `encode_after` does not."""
        return False

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text as the continuation of another one, without the space that some tokenizers prepend.

        Tokenizers that fold white space encode " a" and "a" alike; they encode a continuation like the start of a text.
        """
        return self.encode_batch(texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Encode the words of one text separately; the concatenated ids are those of the words joined by spaces."""
        return self.encode_batch(words[:1]) + self.encode_after([after_space(word) for word in words[1:]])

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
        """Encode texts or pairs with the offsets, word indices and types of their tokens.

        Args:
          texts: texts, or pairs of texts.
          add_special_tokens: whether to add special tokens around them.
          max_length: length to truncate to, special tokens included; None does not truncate.
          stride: number of tokens that a truncated text shares with its next part in Encoding.overflowing.
          strategy: what to truncate in a pair: "longest_first", "only_first" or "only_second".
          side: the side to truncate, "right" or "left"; None is `truncation_side`.

        Raises:
          TokenizerError: this tokenizer does not support offsets (`supports_offsets`).
        """
        raise TokenizerError(f"The tokenizer {self.name} does not report character offsets.")

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
        """Return model inputs for a text, a list of texts, or pairs of texts, as transformers' tokenizers do.

        With `adds_special_tokens`, special tokens in a text ("[MASK]", "<extra_id_0>") are recognized. Other tokenizers use BERT's
        format: [CLS] text [SEP], or [CLS] text [SEP] text [SEP].

        Args:
          text: a text or a list of texts.
          text_pair: the second text of each pair.
          text_target: the decoder target of each text, encoded in the target language.
          padding: False; True or "longest" to pad to the longest sequence; "max_length" to pad to max_length.
          truncation: whether to truncate to max_length, taking tokens from the longer text of a pair first.
          max_length: number of tokens, special tokens included; None is the model's maximum.
          padding_side: "right" or "left"; None is the tokenizer's default.
          add_special_tokens: whether to add special tokens around texts.
          return_offsets: whether to return offset_mapping.

        Returns:
          NumPy int32 arrays [B, L] (B = 1 for one text): input_ids, attention_mask, token_type_ids if uses_types, and
          offset_mapping [B, L, 2], the characters [start, end) of its text that each token covers. With text_target also labels,
          the ids of the targets; without text, these are input_ids.

        Raises:
          TokenizerError: sequences of different lengths are not padded, max_length is missing or too short, or offsets are
            not supported.
        """
        if padding not in (False, True, "longest", "max_length"):
            raise TokenizerError(f'padding={padding!r} is not valid. Valid: False, True, "longest", "max_length".')
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise TokenizerError(f'padding_side={side!r} is not valid. Valid: "left", "right".')
        limit = self.max_length if max_length is None else max_length
        if padding == "max_length" and limit is None:
            raise TokenizerError(f'{self.name} defines no maximum length: give max_length with padding="max_length".')
        if return_offsets and not self.supports_offsets:
            raise TokenizerError(f"The tokenizer {self.name} does not report character offsets.")
        cut = limit if truncation else None
        length = limit if padding == "max_length" else 0 if padding else None
        options = (length, self.pad_id if padding else 0, side == "left", self.uses_types, return_offsets)
        labels: dict[str, np.ndarray] = {}
        if text_target is not None:
            targets = stack_rows(self._target_rows(make_pairs(text_target, None), cut, add_special_tokens), *options)
            if text is None:
                return targets
            labels = {"labels": targets["input_ids"]}
        elif text is None:
            raise TokenizerError("A tokenizer takes a text or a list of texts: give text or text_target.")
        return stack_rows(self._rows(make_pairs(text, text_pair), cut, add_special_tokens), *options) | labels

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> Sequence[Row | tokenizers.Encoding]:
        """Encode texts or pairs with special tokens, truncated to `limit` tokens."""
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = [text[1] for text in texts if not isinstance(text, str)]
        frame = (self.cls_id, self.sep_id) if add_special_tokens else None
        others = self.encode_batch(seconds) if seconds else None
        limit = self._check_limit(limit, others is not None, add_special_tokens)
        return bert_rows(self.encode_batch(firsts), others, frame, limit)

    def _target_rows(
        self, texts: Texts, limit: int | None, add_special_tokens: bool
    ) -> Sequence[Row | tokenizers.Encoding]:
        """Encode decoder targets as `_rows` encodes inputs."""
        return self._rows(texts, limit, add_special_tokens)

    def _check_limit(self, limit: int | None, pairs: bool, add_special_tokens: bool) -> int | None:
        """Return the limit, or raise a TokenizerError if special tokens leave no space for text."""
        special = self.num_special_tokens(pairs) if add_special_tokens else 0
        if limit is not None and limit - special < 1 + pairs:
            raise TokenizerError(
                f"max_length={limit} leaves no space for {'two texts' if pairs else 'a text'} next to the special tokens. Set it to "
                f"{special + 1 + pairs} or more."
            )
        return limit

    # ------------------------------------------------------------------------------------------ ids to text

    @abc.abstractmethod
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """Decode ids to text.

        Args:
          ids: a list or an array (NumPy or JAX) of ids, or one id. Negative ids (ignored labels) and ids past the vocabulary
            (padding of the embedding table) are skipped.
          skip_special_tokens: whether to skip special tokens; otherwise they are written by name.
        """

    def batch_decode(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        """Decode each sequence of ids as `decode` does."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return a readable form of each token: its text with ▁ for a space and ⏎ for a line break, or <id> if it has none."""
        return [self.decode([token]).replace(" ", SPACE).replace("\n", "⏎") or f"<{token}>" for token in ids]

    @functools.cached_property
    def keeps_newlines(self) -> bool:
        """Whether decoding restores the line breaks of an encoded text, or they are end tokens."""
        probe = "a\nb"
        ids = self.encode(probe)
        return self.roles.get("eos") in ids[1:-1] or self.decode(ids) == probe

    # ------------------------------------------------------------------------------------------ about the ids

    def token_id(self, token: str) -> int | None:
        """Id of the token with this exact name; None if it is not in the vocabulary."""
        return next((number for number in range(self.size) if self.token_name(number) == token), None)

    def token_name(self, token: int) -> str | None:
        """The exact name of a token; None for an id without a token."""
        return self.pieces([token])[0] if 0 <= token < self.size else None

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """Bool [size]: ids without text: tokens with a role, other special tokens, and ids without a token."""
        special = np.zeros(self.size, dtype=bool)
        special[list(self.roles.values())] = True
        return special

    @functools.cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted int64 array of the ids for which `is_special` is true."""
        return np.flatnonzero(self.is_special)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of (normalized) text in each token, its space included; 0 for special ids."""
        texts = [piece.encode() for piece in self.pieces(range(self.size))]
        return np.where(self.is_special, 0, [len(text.replace(SPACE.encode(), b" ")) for text in texts]).astype(
            np.int32
        )

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Bool [size]: whether a token begins a word: it starts with a space or is a line break. False for special ids."""
        return np.where(
            self.is_special, False, [piece.startswith((SPACE, "⏎")) for piece in self.pieces(range(self.size))]
        )


def after_space(word: str) -> str:
    """Return the word with a space before it."""
    return word if word.startswith(" ") else f" {word}"


def write_files(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Write files into a folder, which is created if missing; each file is written atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(directory / name, content)
