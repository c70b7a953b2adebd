"""Text to token ids and back, through sentencepiece (Kudo and Richardson, EMNLP 2018).

Five tokens have a role whatever the model file calls them: padding, unknown, cls (also begins a text), sep (also ends
one) and mask. Roles that a model file lacks get new ids after its last piece.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np
import sentencepiece

from lm_research.common.disk import write_atomically
from lm_research.common.documents import read_bytes
from lm_research.common.texts import is_text, whole
from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError, not_downloaded
from lm_research.tokenizers.languages import Languages
from lm_research.tokenizers.sentencepiece_model import read_model

# Role -> the names it goes by in published models, most telling first.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>", "<bos>"),
    "sep": ("[SEP]", "<sep>", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}
SPACE = "\u2581"  # what sentencepiece writes for a space
NO_PREFIX = b"\x1a\x02\x18\x00"  # after a model file it sets normalizer_spec.add_dummy_prefix to false, by protobuf's rules of merging
MAX_LINES = 1_000_000  # lines a vocabulary is learned from, and
MAX_CHARACTERS = 200_000_000  # their length: beyond it training needs more memory than it gains in quality
_LINE_CHARACTERS = 4000  # longer lines are cut; four bytes each stay under sentencepiece's limit below
_THREADS = 16  # part of the result (sums of floats run per thread), so never the machine's own number


class TextTokenizer(Protocol):
    """What the rest of the library asks of a tokenizer: this file's Tokenizer, or an HFTokenizer (hf_tokenizer.py).

    Attributes:
      name: where it comes from, for messages.
      roles: role ("pad", "unk", "cls", "sep", "mask", "bos", "eos") -> id, of those that it has.
      size: number of ids; digest: SHA-256 of its content, in hexadecimal.
      files: name -> content of the files that must travel with a model; load_tokenizer opens a folder that holds them.
      languages: those that it marks texts with; None if it marks none.
    """

    name: str
    roles: dict[str, int]
    size: int
    digest: str
    files: dict[str, bytes]
    languages: Languages | None

    # Each raises a TokenizerError where a tokenizer has no such role.
    @property
    def pad_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def keeps_newlines(self) -> bool: ...
    @property
    def adds_space(self) -> bool: ...
    @property
    def special_ids(self) -> np.ndarray: ...
    @property
    def token_bytes(self) -> np.ndarray: ...
    @property
    def starts_word(self) -> np.ndarray: ...
    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode_after(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode_words(self, words: Sequence[str]) -> list[list[int]]: ...
    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...
    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Any) -> str: ...
    def pieces(self, ids: Iterable[int]) -> list[str]: ...
    def save(self, path: pathlib.Path) -> None: ...
    def save_files(self, directory: pathlib.Path | str) -> None: ...


class Tokenizer:
    """A sentencepiece model and its roles.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the roles; bos_id and eos_id are cls_id and sep_id.
      roles: role -> id, of these seven.
      size: number of ids, added roles included.
      proto: the model file's bytes; digest: their SHA-256 in hexadecimal; files: {"tokenizer.model": proto}.
      name: where it comes from, for messages.
    """

    languages: Languages | None = None

    def __init__(self, proto: bytes, name: str = "tokenizer.model") -> None:
        """Wraps a serialised sentencepiece model; raises RuntimeError when it is none."""
        self.proto, self.name = proto, name
        self.files = {"tokenizer.model": proto}
        self.digest = hashlib.sha256(proto).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._pieces = self._model.get_piece_size()
        self._added: list[str] = []
        self.pad_id = self._role("pad", self._model.pad_id())
        self.unk_id = self._role("unk", self._model.unk_id())
        self.cls_id = self._role("cls", self._model.bos_id())
        self.sep_id = self._role("sep", self._model.eos_id())
        self.mask_id = self._role("mask", -1)
        self.bos_id, self.eos_id = self.cls_id, self.sep_id
        self.roles = {role: getattr(self, f"{role}_id") for role in (*ROLES, "bos", "eos")}
        self.size = self._pieces + len(self._added)

    def _role(self, role: str, declared: int) -> int:
        for name in ROLES[role]:
            found = self._model.piece_to_id(name)
            if self._model.id_to_piece(found) == name:
                return found
        if declared >= 0:
            return declared
        self._added.append(ROLES[role][0])
        return self._pieces + len(self._added) - 1

    @classmethod
    def load(cls, path: pathlib.Path | str) -> Tokenizer:
        """Reads a sentencepiece .model file, ours or anyone's.

        Raises:
          TokenizerError: there is no such file, or it is not a sentencepiece model.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            more = "" if path.exists() or path.suffix in (".model", ".json") else not_downloaded(path)
            raise TokenizerError(
                f"The tokenizer {path} {what}. Give the path of a sentencepiece .model file in config.tokenizer.path, "
                f"or leave that key empty to train a tokenizer on the corpus.{more}"
            )
        return cls.parse(read_bytes(path, error=TokenizerError, fix="Copy it again."), str(path))

    @classmethod
    def parse(cls, proto: bytes, name: str) -> Tokenizer:
        """Wraps a serialised sentencepiece model; raises a TokenizerError that names it when it is none."""
        try:
            read_model(proto)  # the library itself trusts what it reads
            return cls(proto, name)
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(
                f"The tokenizer {name} ({len(proto)} bytes) is not a sentencepiece model, or it is damaged ({error}). "
                "Copy it again, or leave config.tokenizer.path empty to train a tokenizer on the corpus."
            ) from error

    @classmethod
    def train(
        cls, texts: Iterable[str], config: TokenizerConfig, path: pathlib.Path, words: IO[bytes] | None = None
    ) -> Tokenizer:
        """Learns a vocabulary and writes it to `path`; the same text gives the same bytes.

        Pieces 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]; characters outside the vocabulary become UTF-8 byte pieces,
        so nothing is unknown. With keep_newlines text comes back from its tokens unchanged; otherwise it is normalised
        (NFKC, runs of white space become one space).

        Args:
          texts: documents or sentences, read once. Of more than MAX_LINES lines, every n-th is taken.
          config: kind, vocab_size and keep_newlines are used.
          path: of the .model file, which appears only when it is whole.
          words: a file that gets what sentencepiece says of its progress.

        Raises:
          TokenizerError: there is no text, or vocab_size does not suit it; the message names a size that does.
        """
        model = io.BytesIO()
        try:
            lines, options = iter(sample_lines(texts)), _trainer_options(config)
            if words is not None and _has_stderr():
                options |= dict(minloglevel=0, logstream=words)
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
        except RuntimeError as error:
            raise _training_error(str(error), config) from error
        tokenizer = cls(model.getvalue())
        tokenizer.save(path)
        return tokenizer

    def save(self, path: pathlib.Path) -> None:
        """Writes the model file; it appears only when it is whole."""
        write_files({path.name: self.proto}, path.parent)

    def save_files(self, directory: pathlib.Path | str) -> None:
        """Writes `files` into a folder, which is made if need be."""
        write_files(self.files, pathlib.Path(directory))

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name, None when it is not in the vocabulary."""
        if token in self._added:
            return self._pieces + self._added.index(token)
        if not is_text(token):
            return None
        found = self._model.piece_to_id(token)
        return found if self._model.id_to_piece(found) == token else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without roles around it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on several threads."""
        return self._encode(texts, int)

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text where it goes on with another one: a model that puts a space before a text puts none here.

        Models that fold runs of white space cannot tell " a" from "a"; they put their space here too.
        """
        return (self._going_on or self).encode_batch(texts)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word of one text: together those of the words with a space between them."""
        return self.encode_batch(words[:1]) + self.encode_after([after_space(word) for word in words[1:]])

    @property
    def adds_space(self) -> bool:
        """Whether a text gets a space before it that it would not get after another one."""
        return self._going_on is not None

    @functools.cached_property
    def _going_on(self) -> Tokenizer | None:
        """The same model without the space before a text; None where that makes no difference, or spaces are folded."""
        one, more = (self._model.normalize(text) for text in ("a", " a"))
        if not one.startswith(SPACE) or more == one:
            return None
        return Tokenizer(self.proto + NO_PREFIX, self.name)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another, int32, and how many each has, int64; sooner than `encode_batch`."""
        rows = self._encode(texts, "numpy")
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32, copy=False), lengths

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts to be written, which are those of texts to be read."""
        return self.encode_batch(texts)

    def _encode(self, texts: Sequence[str], kind: type | str) -> list[Any]:
        """Ids of each text, as lists (int) or arrays ("numpy")."""
        if not texts:
            return []
        texts = whole(list(texts))
        ids = self._model.encode(texts, return_type=kind)
        if self.keeps_newlines:  # and so keeps everything, but for the character that stands for a space
            for row, text in enumerate(texts):
                if SPACE in text:
                    ids[row] = self._encode_literally(text)
        return ids

    def _encode_literally(self, text: str) -> list[int]:
        literal = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ids = self._model.encode(text.split(SPACE))
        return ids[0] + [token for part in ids[1:] for token in literal + part]

    def decode(self, ids: Any) -> str:
        """The text that ids stand for; roles, and ids below 0 or past the vocabulary (rows that pad a table), stand for none."""
        kept = known_ids(ids, self._pieces)
        return self._model.decode(kept[~self._is_special[kept]].tolist())

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """One readable piece for each id, roles by name, a line break as ⏎."""
        return [self._piece(int(token)) for token in ids]

    def _piece(self, token: int) -> str:
        if token >= self.size:
            return f"<{token}>"
        if token >= self._pieces:
            return self._added[token - self._pieces]
        return self._model.id_to_piece(token).replace("\n", "⏎")

    @functools.cached_property
    def keeps_newlines(self) -> bool:
        """Whether line breaks come back from the tokens."""
        probe = "a\nb"
        return self._model.decode(self._model.encode(probe)) == probe

    @functools.cached_property
    def _is_special(self) -> np.ndarray:
        flags = [self._model.is_control(token) or self._model.is_unknown(token) for token in range(self._pieces)]
        special = np.array(flags + [True] * len(self._added), dtype=bool)
        special[[self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id]] = True
        return special

    @functools.cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted int64 ids that stand for no text: the roles and the model's other control pieces."""
        return np.flatnonzero(self._is_special)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [size]: UTF-8 bytes of (normalised) text that each token stands for; 0 for special ids."""
        lengths = np.zeros(self.size, dtype=np.int32)
        for token in np.flatnonzero(~self._is_special).tolist():
            piece = self._model.id_to_piece(token)
            lengths[token] = 1 if self._model.is_byte(token) else len(piece.replace(SPACE, " ").encode())
        return lengths

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """bool [size]: the token begins with a space or is a line break, so it begins a word; never for special ids."""
        starts = np.zeros(self.size, dtype=bool)
        for token in np.flatnonzero(~self._is_special).tolist():
            starts[token] = self._model.id_to_piece(token).startswith((SPACE, "\n"))
        return starts


def known_ids(ids: Any, size: int) -> np.ndarray:
    """Those of a text's ids that are ids, from 0 to below `size`: int64 [L]. `ids` is an array, a list or an iterator, or one of them.

    Raises:
      TokenizerError: they are ids of several texts, or none at all.
    """
    try:
        row = np.atleast_1d(np.asarray(list(ids) if isinstance(ids, Iterator) else ids))
    except ValueError:  # rows of several lengths
        row = np.zeros((0, 0))
    if row.ndim != 1 or row.size and not np.issubdtype(row.dtype, np.number):
        raise TokenizerError(
            f"decode takes the ids of one text, not {str(ids)[:80]!r}; batch_decode takes those of several."
        )
    return row[(row >= 0) & (row < size)].astype(np.int64)


def after_space(word: str) -> str:
    """A word with one space before it."""
    return word if word.startswith(" ") else f" {word}"


def _has_stderr() -> bool:
    """Whether standard error is the process's own, where sentencepiece writes, and not a notebook's."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def write_files(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    """Writes files into a folder, which is made if need be; each appears only when it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(directory / name, content)


def sentinels(config: TokenizerConfig) -> list[str]:
    """Names of the sentinel tokens that a trained tokenizer gets after those with roles."""
    return [f"<extra_id_{number}>" for number in range(config.sentinels)]


def _trainer_options(config: TokenizerConfig) -> dict[str, object]:
    options = dict(
        model_type=config.kind,
        vocab_size=config.vocab_size,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        control_symbols=[ROLES["mask"][0], *sentinels(config)],
        **{f"{ours}_piece": ROLES[role][0] for ours, role in dict(pad="pad", unk="unk", bos="cls", eos="sep").items()},
        max_sentence_length=4 * _LINE_CHARACTERS + 1,
        num_threads=_THREADS,
        minloglevel=3,
    )
    if config.keep_newlines:
        options.update(
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
        )
    return options


def _training_error(message: str, config: TokenizerConfig) -> TokenizerError:
    """Sentencepiece's complaint in our words."""
    size = f"config.tokenizer.vocab_size={config.vocab_size}"
    if match := re.search(r"value <= (\d+)", message):
        return TokenizerError(
            f"The corpus is too small for {size}: its text gives at most {match[1]} pieces. "
            f"Set --config.tokenizer.vocab_size={match[1]} or less, or train on more text."
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return TokenizerError(
            f"{size} is too small: the corpus needs at least {match[1]} pieces, for 256 bytes, 5 special tokens and "
            f"its own characters. Set --config.tokenizer.vocab_size={match[1]} or more."
        )
    if "sentences_.empty()" in message:
        return TokenizerError(
            "There is no text to train a tokenizer on: every document is empty. Check config.data.source."
        )
    return TokenizerError(f"Sentencepiece cannot train a tokenizer with {size}: {message}")


def sample_lines(texts: Iterable[str]) -> list[str]:
    """Lines spread evenly over the texts: all, or every n-th once they pass MAX_LINES or MAX_CHARACTERS."""
    kept: list[str] = []
    stride, characters = 1, 0
    for number, line in enumerate(_lines(map(whole, texts))):
        if number % stride:
            continue
        kept.append(line)
        characters += len(line)
        if len(kept) > MAX_LINES or characters > MAX_CHARACTERS:
            kept = kept[::2]
            stride *= 2
            characters = sum(map(len, kept))
    return kept


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            while len(line) > _LINE_CHARACTERS:
                cut = line.rfind(" ", 1, _LINE_CHARACTERS)
                cut = cut if cut > 0 else _LINE_CHARACTERS
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line
