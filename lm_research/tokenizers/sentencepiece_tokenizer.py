"""Tokenizers of sentencepiece models (Kudo and Richardson, EMNLP 2018).

Five tokens have a role regardless of their names in the model file: padding, unknown, cls (also bos), sep (also eos) and mask. Roles
that a model file lacks get new ids after its last piece.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Literal, Self

import numpy as np
import sentencepiece
from typing_extensions import override

from lm_research.common.documents import read_bytes
from lm_research.common.texts import is_text, replace_surrogates
from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError, not_downloaded
from lm_research.tokenizers.base import ROLES, SPACE, Tokenizer
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.inputs import valid_ids
from lm_research.tokenizers.sentencepiece_backend import to_backend
from lm_research.tokenizers.sentencepiece_model import NO_PREFIX, read_model
from lm_research.tokenizers.sentencepiece_training import train_model
from tokenizers import AddedToken

MODEL = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with all seven roles, of which bos equals cls and eos equals sep.

    Attributes:
      proto: the model file's bytes, whose SHA-256 is the digest.
    """

    uses_types = True
    adds_special_tokens = False

    def __init__(self, proto: bytes, name: str = MODEL, template: bytes | None = None) -> None:
        """Wrap a serialized sentencepiece model and an optional chat template; raises RuntimeError for an invalid model."""
        self.proto, self.name = proto, name
        self.files = {MODEL: proto} | ({} if template is None else {TEMPLATE: template})
        self.digest = hashlib.sha256(proto).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._pieces = self._model.get_piece_size()
        self._added: list[str] = []
        declared = dict(
            pad=self._model.pad_id(), unk=self._model.unk_id(), cls=self._model.bos_id(), sep=self._model.eos_id()
        )
        roles = {role: self._find_role(role, declared.get(role, -1)) for role in ROLES}
        self.roles = roles | {"bos": roles["cls"], "eos": roles["sep"]}
        self.size = self._pieces + len(self._added)

    def _find_role(self, role: str, declared: int) -> int:
        for name in ROLES[role]:
            found = self._model.piece_to_id(name)
            if self._model.id_to_piece(found) == name:
                return found
        if declared >= 0:
            return declared
        self._added.append(ROLES[role][0])
        return self._pieces + len(self._added) - 1

    @classmethod
    def load(cls, path: pathlib.Path | str) -> SentencePieceTokenizer:
        """Read a sentencepiece .model file.

        Raises:
          TokenizerError: there is no such file, or it is not a sentencepiece model.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            more = "" if path.exists() or path.suffix in (".model", ".json") else not_downloaded(path)
            raise TokenizerError(
                f"The tokenizer {path} {what}. Set config.tokenizer.path to a sentencepiece .model file, or leave it empty to train a "
                f"tokenizer on the corpus.{more}"
            )
        return cls.parse(read_bytes(path, error=TokenizerError, fix="Copy it again."), str(path))

    @classmethod
    def parse(cls, proto: bytes, name: str, template: bytes | None = None) -> Self:
        """Wrap a serialized sentencepiece model; raises a TokenizerError with its name if it is invalid."""
        try:
            read_model(proto)  # the library does not validate it
            return cls(proto, name, template)
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(
                f"The tokenizer {name} ({len(proto)} bytes) is not a sentencepiece model, or it is damaged ({error}). "
                "Copy it again, or leave config.tokenizer.path empty to train a tokenizer on the corpus."
            ) from error

    @classmethod
    @override
    def from_files(cls, files: Mapping[str, bytes], where: str) -> Self:
        return cls.parse(files[MODEL], f"{where}/{MODEL}", files.get(TEMPLATE))

    @classmethod
    def train(
        cls, texts: Iterable[str], config: TokenizerConfig, path: pathlib.Path, words: IO[bytes] | None = None
    ) -> SentencePieceTokenizer:
        """Train a model (see `train_model`) and write it atomically to `path`, a .model file."""
        tokenizer = cls(train_model(texts, config, words))
        tokenizer.save(path)
        return tokenizer

    def library_spec(self) -> dict[str, Any]:
        """The content of an equivalent tokenizer.json, with the roles as special tokens; the mask absorbs the space before it."""
        backend = to_backend(self.proto, self.keeps_newlines, self.name)
        for number, is_mask in sorted({(number, role == "mask") for role, number in self.roles.items()}):
            backend.add_special_tokens([AddedToken(self.pieces([number])[0], lstrip=is_mask, normalized=False)])
        spec: dict[str, Any] = json.loads(backend.to_str())
        return spec

    @override
    def token_id(self, token: str) -> int | None:
        if token in self._added:
            return self._pieces + self._added.index(token)
        if not is_text(token):
            return None
        found = self._model.piece_to_id(token)
        return found if self._model.id_to_piece(found) == token else None

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encode(texts, int)

    @override
    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        return (self._continuing or self).encode_batch(texts)

    @property
    @override
    def adds_space(self) -> bool:
        return self._continuing is not None

    @functools.cached_property
    def _continuing(self) -> SentencePieceTokenizer | None:
        """The same model without the space before a text; None if the model adds none, or folds spaces."""
        bare, spaced = (self._model.normalize(text) for text in ("a", " a"))
        if not bare.startswith(SPACE) or spaced == bare:
            return None
        return SentencePieceTokenizer(self.proto + NO_PREFIX, self.name)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode all texts into one int32 array and return it with their int64 lengths; faster than `encode_batch`."""
        rows = self._encode(texts, "numpy")
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32, copy=False), lengths

    def _encode(self, texts: Sequence[str], kind: type[int] | Literal["numpy"]) -> list[Any]:
        """Encode each text into a list (int) or an array ("numpy")."""
        if not texts:
            return []
        texts = replace_surrogates(list(texts))
        ids: list[Any] = self._model.encode(texts, return_type=kind)
        if self.keeps_newlines:  # text is then unchanged, except SPACE itself, which would become a space
            for row, text in enumerate(texts):
                if SPACE in text:
                    ids[row] = self._encode_literally(text)
        return ids

    def _encode_literally(self, text: str) -> list[int]:
        literal = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        ids = self._model.encode(text.split(SPACE))
        return [*ids[0], *(token for part in ids[1:] for token in literal + part)]

    @override
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        known = valid_ids(ids, self.size)
        if skip_special_tokens:
            return str(self._model.decode(known[~self.is_special[known]].tolist()))
        parts = itertools.groupby(known.tolist(), key=lambda token: bool(self.is_special[token]))
        return "".join(
            "".join(self.pieces(run)) if special else self._model.decode(list(run)) for special, run in parts
        )

    @override
    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [(self.token_name(int(token)) or f"<{token}>").replace("\n", "⏎") for token in ids]

    @override
    def token_name(self, token: int) -> str | None:
        if token >= self.size:
            return None
        return self._model.id_to_piece(token) if token < self._pieces else self._added[token - self._pieces]

    @functools.cached_property
    @override
    def keeps_newlines(self) -> bool:
        probe = "a\nb"
        return bool(self._model.decode(self._model.encode(probe)) == probe)

    @functools.cached_property
    @override
    def is_special(self) -> np.ndarray:
        flags = [self._model.is_control(token) or self._model.is_unknown(token) for token in range(self._pieces)]
        special = np.array(flags + [True] * len(self._added), dtype=bool)
        special[[self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id]] = True
        return special

    @functools.cached_property
    @override
    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.size, dtype=np.int32)
        for token in np.flatnonzero(~self.is_special).tolist():
            piece = self._model.id_to_piece(token)
            lengths[token] = 1 if self._model.is_byte(token) else len(piece.replace(SPACE, " ").encode())
        return lengths

    @functools.cached_property
    @override
    def starts_word(self) -> np.ndarray:
        starts = np.zeros(self.size, dtype=bool)
        for token in np.flatnonzero(~self.is_special).tolist():
            starts[token] = self._model.id_to_piece(token).startswith((SPACE, "\n"))
        return starts
