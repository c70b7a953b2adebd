"""Opens whatever a path holds as a tokenizer.

tokenizer = load_tokenizer("path/of/a/model")
batch = tokenizer(["a text", "another"], padding=True, truncation=True, max_length=128)
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping

from lm_research.common.documents import read_bytes
from lm_research.errors import TokenizerError
from lm_research.tokenizers import hf_vocabularies
from lm_research.tokenizers.base import ROLES, Tokenizer
from lm_research.tokenizers.chat_template import TEMPLATE
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

STARTS = (
    TOKENIZER_JSON,
    "vocab.txt",
    "vocab.json",
    *SENTENCEPIECE_FILES,
)  # a folder with any of these holds a tokenizer
_LOOKED_FOR = (
    TOKENIZER_JSON,
    "vocab.txt",
    "vocab.json with merges.txt or with source.spm and target.spm",
    *SENTENCEPIECE_FILES,
)
_NUMBERED = ("two models", "one model")  # vocabularies of numbered_pieces.py


def load_tokenizer(path: pathlib.Path | str) -> Tokenizer:
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
        return tokenizer_from_files(
            _read(path, TOKENIZER_JSON, *VOCABULARIES, *SETTINGS, SENTENCE_BERT_CONFIG, TEMPLATE), str(path)
        )
    if path.suffix == ".json" and is_file:
        files = _read(path.parent, *SETTINGS, TEMPLATE) if path.name == TOKENIZER_JSON else {}
        return tokenizer_from_files(
            files | {TOKENIZER_JSON: read_bytes(path, error=TokenizerError, fix=FIX)}, str(path)
        )
    return SentencePieceTokenizer.load(path)


def _read(folder: pathlib.Path, *names: str) -> dict[str, bytes]:
    """Those of the files that a folder has."""
    found = [name for name in names if os.path.lexists(folder / name)]
    return {name: read_bytes(folder / name, error=TokenizerError, fix=FIX) for name in found}


def tokenizer_from_files(files: Mapping[str, bytes], where: str) -> Tokenizer:
    """The tokenizer that a folder with these files holds.

    Args:
      files: name -> content; others than load_tokenizer looks at do not matter.
      where: their folder, for messages.

    Raises:
      TokenizerError: as load_tokenizer.
    """
    settings = read_settings(files, where)
    if TOKENIZER_JSON in files and not (settings.kind and settings.kind.vocabulary in _NUMBERED):
        return HFTokenizer(files, settings)
    if _is_plain(files, settings):
        return SentencePieceTokenizer.from_files(files, where)
    names = hf_vocabularies.find_vocabulary(files, settings)
    if not names:
        raise TokenizerError(
            f"{where} is a folder without a tokenizer: looked for {', '.join(_LOOKED_FOR)}. Give the folder of a Hugging Face "
            "model, a tokenizer.json or a sentencepiece .model file in config.tokenizer.path, or leave that key empty to "
            "train a tokenizer on the corpus."
        )
    if any(names == hf_vocabularies.FILES[sort] for sort in _NUMBERED):
        return NumberedPieces.from_files(files, where)
    return HFTokenizer(files, settings)


def _is_plain(files: Mapping[str, bytes], settings: Settings) -> bool:
    """Whether a folder's only vocabulary is a sentencepiece model that one of our own models was trained with.

    Of the published classes known here only Llama's calls its model tokenizer.model; ours begins with our names of roles.
    """
    if MODEL not in files or any(name in files for name in VOCABULARIES if name != MODEL):
        return False
    if not settings.class_name or settings.kind and settings.kind.name != "LlamaTokenizer":
        return True
    try:
        pieces = read_model(files[MODEL]).pieces
    except ValueError:
        return False
    return [text for text, *_ in pieces[: len(ROLES)]] == [names[0] for names in ROLES.values()]
