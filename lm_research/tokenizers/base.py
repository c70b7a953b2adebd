"""What every tokenizer offers, and what the rest of the library may ask of one."""

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
from lm_research.errors import TokenizerError
from lm_research.tokenizers.inputs import Row, Texts, bert_rows, make_pairs, stack_rows
from lm_research.tokenizers.languages import Languages, require_languages

# Role -> the names it goes by in published models, most telling first.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>", "<bos>"),
    "sep": ("[SEP]", "<sep>", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}
SPACE = "\u2581"  # what sentencepiece writes for a space


class Frame(NamedTuple):
    """Ids before a text and after it."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.head) + len(self.tail)


class Tokenizer(abc.ABC):
    """Text to ids and back. One's own gives roles, size, `encode_batch` and `decode`; all else follows from them.

    Attributes:
      name: where it comes from, for messages.
      roles: role ("pad", "unk", "cls", "sep", "mask", "bos", "eos") -> id, of those that it has.
      size: number of ids (the highest + 1); digest: SHA-256 of its content, in hexadecimal.
      files: name -> content of what must travel with a model; load_tokenizer opens a folder that holds them.
      languages: those that it marks texts with; None if it marks none.
      max_length: tokens of the longest text that its model takes, special ones included; None when unlimited.
      uses_types: whether its models tell a pair's two texts apart by types.
      padding_side, truncation_side: "right" or "left".
      adds_special_tokens: whether its files say which special tokens stand around a text, and a text can name them ("[MASK]");
        with others each use has its own, and the names are characters like any.
      supports_offsets: whether `encodings` tells where its tokens stand in a text.
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
        """The tokenizer that these files hold; `where` is their folder, for messages."""
        raise TokenizerError(f"{where}: a {cls.__name__} is not read from files.")

    @property
    def main_file(self) -> str:
        """The one of `files` that alone is the tokenizer."""
        return next(iter(self.files))

    def save(self, path: pathlib.Path) -> None:
        """Writes `main_file`, which appears only when it is whole; save_files writes what belongs to it too."""
        write_files({path.name: self.files[self.main_file]}, path.parent)

    def save_files(self, directory: pathlib.Path | str) -> None:
        """Writes `files` into a folder, which is made if need be."""
        write_files(self.files, pathlib.Path(directory))

    def library_spec(self) -> dict[str, Any]:
        """The tokenizer as a tokenizer.json; raises a TokenizerError if that format has no place for it."""
        raise TokenizerError(f"The tokenizer {self.name} has no counterpart in tokenizer.json.")

    def in_languages(self, source: str = "", target: str = "") -> Self:
        """The same tokenizer for texts in another language; "" keeps one.

        Raises:
          TokenizerError: it marks no text with its language, or has no such language.
        """
        if not (source or target):
            return self
        languages = require_languages(self.languages, source or target)
        for code in filter(None, (source, target)):
            languages.id_of(code)
        name = "tokenizer_config.json"
        wanted = {"src_lang": source or languages.source, "tgt_lang": target or languages.target or None}
        config = json.dumps(json_value(self.files[name]) | wanted, indent=2, sort_keys=True) + "\n"
        return self.from_files({**self.files, name: config.encode()}, self.name)

    # ------------------------------------------------------------------------------------------ special tokens

    def role_id(self, role: str) -> int:
        """Id of a role; raises a TokenizerError where there is none."""
        if role not in self.roles:
            raise TokenizerError(
                f"The tokenizer {self.name} has no {role} token, which this use of it needs. Choose an objective or task that "
                f"does without, or name its token: {role}_token in tokenizer_config.json."
            )
        return self.roles[role]

    pad_id = property(lambda self: self.role_id("pad"), doc="Id of padding; each raises as `role_id`.")
    unk_id = property(lambda self: self.role_id("unk"), doc="Id of the unknown.")
    cls_id = property(lambda self: self.role_id("cls"), doc="Id that begins a text.")
    sep_id = property(lambda self: self.role_id("sep"), doc="Id that ends a text.")
    mask_id = property(lambda self: self.role_id("mask"), doc="Id of the mask.")
    bos_id = property(lambda self: self.role_id("bos"), doc="Id that begins a text.")
    eos_id = property(lambda self: self.role_id("eos"), doc="Id that ends a text.")

    @property
    def frame(self) -> Frame:
        """Around what an encoder reads: the special tokens of its files, or the end token where they name none."""
        if self.languages is not None:
            return Frame(*self.languages.frame_ids(self.languages.source, self.eos_id))
        return Frame((), (self.eos_id,))

    @property
    def target_frame(self) -> Frame:
        """Around what a decoder is to write: what comes before a text, and the end token after it.

        Tokenizers with languages frame it as the source, with the code of what is written.
        """
        if self.languages is not None:
            return Frame(*self.languages.frame_ids(self.languages.target_or_source, self.eos_id))
        return Frame(self.frame.head, (self.eos_id,))

    @property
    def call_frame(self) -> Frame:
        """What calling the tokenizer puts around one text."""
        return self.frame if self.adds_special_tokens else Frame((self.cls_id,), (self.sep_id,))

    @property
    def adds_end_token(self) -> bool:
        """Whether a special token stands behind what an encoder reads."""
        return bool(self.frame.tail)

    def num_special_tokens(self, pair: bool = False) -> int:
        """Special tokens around a text, or around and between two, when the tokenizer is called."""
        return 2 + pair

    # ------------------------------------------------------------------------------------------ text to ids

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it and with none found in it: "[MASK]" is six characters."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as `encode_batch`."""
        return self.encode_batch([text])[0]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, int32, and how many each has, int64."""
        rows = self.encode_batch(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts to be written, which are those of texts to be read unless there are two models."""
        return self.encode_batch(texts)

    @property
    def adds_space(self) -> bool:
        """Whether a text gets a space before it that it would not get after another one."""
        return False

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text where it goes on with another one: a tokenizer that puts a space before a text puts none here.

        Tokenizers that fold white space cannot tell " a" from "a"; they do the same here as at the beginning.
        """
        return self.encode_batch(texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of one text: together those of the words with a space between them."""
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
        """Texts or pairs with offsets, words and types of their tokens.

        Args:
          max_length: to cut to, special tokens included; what is over overlaps by `stride`, see Encoding.overflowing.
          strategy: "longest_first", "only_first" or "only_second".
          side: that is cut, "right" or "left"; None is `truncation_side`.

        Raises:
          TokenizerError: this tokenizer does not tell (`supports_offsets`).
        """
        raise TokenizerError(f"The tokenizer {self.name} does not tell where its tokens stand in a text.")

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

        Special tokens that a text names ("[MASK]", "<extra_id_0>") are taken as such where `adds_special_tokens`; other tokenizers
        put BERT's form around texts: [CLS] text [SEP], or [CLS] text [SEP] text [SEP].

        Args:
          text, text_pair: the texts, and the second ones of pairs.
          text_target: texts to be written for them, in the form of the language that the tokenizer writes.
          padding: False; True or "longest" to the longest row; "max_length" to max_length.
          truncation: whether to cut rows to max_length, from the longer text of a pair first.
          max_length: in tokens, special ones included; None takes the model's own.
          padding_side: "right" or "left"; None takes the tokenizer's own.
          add_special_tokens: put special tokens around texts.
          return_offsets: give offset_mapping too.

        Returns:
          NumPy int32 arrays [B, L] (B = 1 for one text): input_ids, attention_mask, token_type_ids if uses_types, and
          offset_mapping [B, L, 2], the characters [from, to) of its text that each token covers. With text_target also labels,
          its ids; without text, its ids as input_ids.

        Raises:
          TokenizerError: rows differ in length and are not padded, max_length is needed and not known or too short, or offsets are
            not known.
        """
        if padding not in (False, True, "longest", "max_length"):
            raise TokenizerError(f'padding={padding!r} is not known; valid: False, True, "longest", "max_length".')
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise TokenizerError(f'padding_side={side!r} is not known; valid: "left", "right".')
        limit = self.max_length if max_length is None else max_length
        if padding == "max_length" and limit is None:
            raise TokenizerError(f'{self.name} names no longest length: give max_length with padding="max_length".')
        if return_offsets and not self.supports_offsets:
            raise TokenizerError(f"The tokenizer {self.name} does not tell where its tokens stand in a text.")
        cut = limit if truncation else None
        length = limit if padding == "max_length" else 0 if padding else None
        how = (length, self.pad_id if padding else 0, side == "left", self.uses_types, return_offsets)
        found: dict[str, np.ndarray] = {}
        if text_target is not None:
            found = stack_rows(self._target_rows(make_pairs(text_target, None), cut, add_special_tokens), *how)
            if text is None:
                return found
            found = {"labels": found["input_ids"]}
        elif text is None:
            raise TokenizerError("A tokenizer takes a text or a list of texts: give text, or text_target.")
        return stack_rows(self._rows(make_pairs(text, text_pair), cut, add_special_tokens), *how) | found

    def _rows(self, texts: Texts, limit: int | None, add_special_tokens: bool) -> Sequence[Row | tokenizers.Encoding]:
        """Texts or pairs, with special tokens and cut to `limit` tokens."""
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = [text[1] for text in texts if not isinstance(text, str)]
        frame = (self.cls_id, self.sep_id) if add_special_tokens else None
        others = self.encode_batch(seconds) if seconds else None
        limit = self._checked(limit, others is not None, add_special_tokens)
        return bert_rows(self.encode_batch(firsts), others, frame, limit)

    def _target_rows(
        self, texts: Texts, limit: int | None, add_special_tokens: bool
    ) -> Sequence[Row | tokenizers.Encoding]:
        """Texts to be written."""
        return self._rows(texts, limit, add_special_tokens)

    def _checked(self, limit: int | None, pairs: bool, add_special_tokens: bool) -> int | None:
        """A limit that leaves room for texts; raises a TokenizerError for one that does not."""
        special = self.num_special_tokens(pairs) if add_special_tokens else 0
        if limit is not None and limit - special < 1 + pairs:
            raise TokenizerError(
                f"max_length={limit} leaves no room for {'two texts' if pairs else 'a text'} beside special tokens: give at "
                f"least {special + 1 + pairs}."
            )
        return limit

    # ------------------------------------------------------------------------------------------ ids to text

    @abc.abstractmethod
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """The text that ids stand for.

        Args:
          ids: an array or a list, of NumPy or JAX, or one of them. Those below 0, as labels that do not count have them, and past
            the vocabulary (rows that pad a table) stand for no text.
          skip_special_tokens: whether special tokens stand for none either, or are written by their names where they have one in text.
        """

    def batch_decode(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        """The text of each row of ids, as `decode`."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One readable piece for each id: its text with ▁ for a space and ⏎ for a line break, <id> for none."""
        return [self.decode([token]).replace(" ", SPACE).replace("\n", "⏎") or f"<{token}>" for token in ids]

    @functools.cached_property
    def keeps_newlines(self) -> bool:
        """Whether line breaks come back from the tokens."""
        probe = "a\nb"
        return self.decode(self.encode(probe)) == probe

    # ------------------------------------------------------------------------------------------ about the ids

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name, None when it is not in the vocabulary."""
        return next((number for number in range(self.size) if self.token_name(number) == token), None)

    def token_name(self, token: int) -> str | None:
        """The exact name of a token, None for an id that is none."""
        return self.pieces([token])[0] if 0 <= token < self.size else None

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        """Array of bool [size]: ids that stand for no text: roles, other special tokens, and ids that no token has."""
        special = np.zeros(self.size, dtype=bool)
        special[list(self.roles.values())] = True
        return special

    @functools.cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted int64 ids that stand for no text."""
        return np.flatnonzero(self.is_special)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of (normalized) text that each token stands for, its space included; 0 for special ids."""
        texts = [piece.encode() for piece in self.pieces(range(self.size))]
        return np.where(self.is_special, 0, [len(text.replace(SPACE.encode(), b" ")) for text in texts]).astype(
            np.int32
        )

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Array of bool [size]: the token begins with a space or is a line break, so it begins a word; never for special ids."""
        return np.where(
            self.is_special, False, [piece.startswith((SPACE, "⏎")) for piece in self.pieces(range(self.size))]
        )


def after_space(word: str) -> str:
    """A word with one space before it."""
    return word if word.startswith(" ") else f" {word}"


def write_files(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Writes files into a folder, which is made if need be; each appears only when it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(directory / name, content)
