"""Loading tokenizers from paths.

tokenizer = load_tokenizer("path/of/a/model")
batch = tokenizer(["a text", "another"], padding=True, truncation=True, max_length=128)
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping

from lm_research.common.bucket_copies import fetched, naming
from lm_research.common.disk import reporting_disk_errors
from lm_research.common.documents import read_bytes
from lm_research.common.paths import as_path, is_remote
from lm_research.config.run_files import newest_step
from lm_research.errors import TokenizerError, UnsupportedTokenizerError
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import ROLES, Tokenizer
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.gguf_tokenizer import SUFFIX, has_tokenizer, tokenizer_files
from lm_research.tokenizers.hf_settings import (
    SENTENCE_BERT_CONFIG,
    SENTENCEPIECE_FILES,
    SETTINGS,
    TOKENIZER_JSON,
    VOCABULARIES,
    Settings,
    read_settings,
)
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.numbered_pieces import NumberedPieces
from lm_research.tokenizers.sentencepiece_model import read_model
from lm_research.tokenizers.sentencepiece_tokenizer import MODEL, SentencePieceTokenizer
from lm_research.tokenizers.spec import FIX
from lm_research.tokenizers.subword_units import SubwordUnits

STARTS = (
    TOKENIZER_JSON,
    "vocab.txt",
    "vocab.json",
    *SENTENCEPIECE_FILES,
)  # a folder with any of these has a tokenizer
_LOOKED_FOR = (
    TOKENIZER_JSON,
    "vocab.txt",
    "vocab.json with merges.txt or with source.spm and target.spm",
    *SENTENCEPIECE_FILES,
)
_WEIGHTS = (".safetensors", ".bin", ".msgpack", ".h5", ".index.json")  # endings of files that no tokenizer is read from
_NUMBERED = ("two models", "one model")  # vocabularies of numbered_pieces.py
_SUBWORDS = (
    "subwords"  # that of subword_units.py, whose tokenizer.json of earlier versions of transformers has other ids
)


def load_tokenizer(path: pathlib.Path | str) -> Tokenizer:
    """Load the tokenizer at a path.

    Args:
      path: a sentencepiece .model file, a tokenizer.json, a GGUF model, or a folder. In a folder the first of these is used:
        tokenizer.json; vocab.txt (WordPiece); vocab.json with merges.txt (byte-level BPE); a sentencepiece model by one of
        the names in SENTENCEPIECE_FILES. tokenizer_config.json, special_tokens_map.json, added_tokens.json and
        config.json next to it define its class, special tokens and options. For the folder of a training run, the files of its
        newest checkpoint are used, and for the folder of a checkpoint its files.

    Raises:
      TokenizerError: there is no tokenizer, it is damaged, or its class is not supported.
    """
    address = as_path(path)
    if is_remote(address):
        with reporting_disk_errors(str, address):
            place = _fetched(address)
        with naming(address, place):
            return load_tokenizer(place)
    try:
        path = address.expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
        checkpointed = (
            [file for name in STARTS for file in path.glob(f"checkpoints/*/files/{name}")] if is_folder else []
        )
        folders = [file.parents[1] for file in checkpointed]
        steps = {int(folder.name): folder for folder in folders if re.fullmatch("[0-9]{1,18}", folder.name)}
        if (
            is_folder and not holds_tokenizer(path) and holds_tokenizer(path / "files")
        ):  # a checkpoint; see also `_fetched`
            steps = {0: path}
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, has an unknown ~user, or has a NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TokenizerError(
            f"The tokenizer {str(path)[:200]!r} cannot be opened: {reason}. Check the path."
        ) from error
    if is_folder:
        path = steps[max(steps)] / "files" if steps else path
        return tokenizer_from_files(
            _read(path, TOKENIZER_JSON, *VOCABULARIES, *SETTINGS, SENTENCE_BERT_CONFIG, TEMPLATE), str(path)
        )
    if path.suffix == ".json" and is_file:
        files = _read(path.parent, *SETTINGS, TEMPLATE) if path.name == TOKENIZER_JSON else {}
        return tokenizer_from_files(
            files | {TOKENIZER_JSON: read_bytes(path, error=TokenizerError, fix=FIX)}, str(path)
        )
    if path.suffix == SUFFIX and is_file:
        return tokenizer_from_files(tokenizer_files(path), str(path))
    return SentencePieceTokenizer.load(path)


def _fetched(path: pathlib.Path) -> pathlib.Path:
    """Copy what a tokenizer is read from to this machine."""
    newest = newest_step(path / "checkpoints")
    checkpoint = path if newest is None else path / "checkpoints" / str(newest)
    return fetched(checkpoint / "files" if (checkpoint / "files").is_dir() else path, without=_WEIGHTS)


def holds_tokenizer(path: pathlib.Path) -> bool:
    """Whether a folder has files of a tokenizer, or a GGUF file has one."""
    if path.suffix == SUFFIX and path.is_file():
        return has_tokenizer(path)
    return any(os.path.lexists(path / name) for name in STARTS)


def _read(folder: pathlib.Path, *names: str) -> dict[str, bytes]:
    """Read the files that exist in a folder."""
    found = [name for name in names if os.path.lexists(folder / name)]
    return {name: read_bytes(folder / name, error=TokenizerError, fix=FIX) for name in found}


def tokenizer_from_files(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """Build a tokenizer from the contents of its folder.

    Args:
      files: name -> content; files that load_tokenizer does not use are ignored.
      where: their folder, for messages.

    Raises:
      TokenizerError: as for load_tokenizer.
    """
    settings = read_settings(files, where)
    vocabulary = settings.kind.vocabulary if settings.kind else ""
    if TOKENIZER_JSON in files and vocabulary not in (*_NUMBERED, _SUBWORDS):
        return HFTokenizer(files, settings)
    if _is_plain(files, settings):
        return SentencePieceTokenizer.from_files(files, where)
    names = hf_vocabularies.find_vocabulary(files, settings)
    if not names and vocabulary == _SUBWORDS:
        raise UnsupportedTokenizerError(
            f"{where} requires a {settings.class_name}, which needs vocab.json and merges.txt: its tokenizer.json has other ids. Copy them."
        )
    if not names:
        raise TokenizerError(
            f"{where} is a folder without a tokenizer: it has none of {', '.join(_LOOKED_FOR)}. Set config.tokenizer.path to the folder "
            "of a Hugging Face model, a tokenizer.json or a sentencepiece .model file, or leave it empty to train a tokenizer on the "
            "corpus."
        )
    if vocabulary == _SUBWORDS:
        return SubwordUnits.from_files(files, where)
    if any(names == hf_vocabularies.FILES[sort] for sort in _NUMBERED):
        return NumberedPieces.from_files(files, where)
    return HFTokenizer(files, settings)


def _is_plain(files: Mapping[str, bytes], settings: Settings) -> bool:
    """Whether a folder's only vocabulary is a sentencepiece model in the format of SentencePieceTokenizer.

    Among the supported classes only Llama's and Gemma's also name their model tokenizer.model; this library's begins with the names in
    ROLES.
    """
    if MODEL not in files or any(name in files for name in VOCABULARIES if name != MODEL):
        return False
    if not settings.class_name or settings.kind and settings.kind.wrap != "bos eos":
        return True
    try:
        pieces = read_model(files[MODEL]).pieces
    except ValueError:
        return False
    return [text for text, *_ in pieces[: len(ROLES)]] == [names[0] for names in ROLES.values()]
