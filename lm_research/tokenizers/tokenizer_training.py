"""Training tokenizers: sentencepiece models, and WordPiece and byte-level BPE with the `tokenizers` library.

The same text gives the same bytes. WordPiece and byte-level BPE are written as the files of published tokenizers of these types
(vocab.txt; vocab.json and merges.txt), so that any library that supports those can read them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.hf_settings import PLAIN_CLASS
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.sentencepiece_training import sample_lines, sentinels
from lm_research.tokenizers.word_vocabulary import make_word_tokenizer, read_vocabulary
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

Prepare = Callable[[Tokenizer], Tokenizer]
LIBRARY_KINDS = ("wordpiece", "byte_bpe")
_WORDPIECE_ROLES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BYTE_ROLES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # as RoBERTa's vocabulary begins
_COVERAGE = (
    0.9995  # fraction of the text's characters in WordPiece's alphabet; the rest are unknown, as in BERT's vocabularies
)
_MIN_COUNT = 2  # of a pair of pieces that is merged
_LINE_SECONDS = 15.0  # between lines of progress


def learn_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, path: pathlib.Path, log: Callable[[str], None]
) -> Tokenizer:
    """Train a tokenizer of any type; raises as `train_model` and `train_tokenizer` do.

    Args:
      texts: documents or sentences, read once.
      config: the type and its options.
      path: where a sentencepiece model is written.
      log: receives lines of progress.
    """
    with _report_progress(config, log, path.parent) as words:
        if config.type == "word":
            return make_word_tokenizer(texts, config)
        if config.type in LIBRARY_KINDS:
            return train_tokenizer(texts, config)
        return SentencePieceTokenizer.train(texts, config, path, words)


def make_tokenizer(
    texts: Iterable[str],
    config: TokenizerConfig,
    folder: pathlib.Path,
    log: Callable[[str], None],
    prepare: Prepare = lambda tokenizer: tokenizer,
) -> Tokenizer:
    """Load the configured tokenizer, or train one, and save its files.

    Args:
      texts: documents or sentences to train on, if config.path is empty.
      config: path, or the type and its options.
      folder: where the files are written; the tokenizer is loaded from there.
      log: receives lines of progress.
      prepare: changes the tokenizer before it is saved.

    Raises:
      TokenizerError: it cannot be loaded or trained.
    """
    if config.path:
        tokenizer = load_tokenizer(config.path)
    else:
        tokenizer = learn_tokenizer(texts, config, folder / "tokenizer.model", log)
    prepare(tokenizer).save_files(folder)
    return load_tokenizer(folder)


def tokenizer_key(config: TokenizerConfig, *names: str, prepare: Prepare = lambda tokenizer: tokenizer) -> list[object]:
    """Values that identify the tokenizer of `make_tokenizer` in the name of a corpus: its digest or, if it is trained, its options."""
    if config.path:
        return [prepare(load_tokenizer(config.path)).digest]
    options: list[object] = [getattr(config, name) for name in ("type", "vocab_size", "lowercase", *names)]
    return options + ([hashlib.sha256(read_vocabulary(config.vocabulary)).hexdigest()] if config.vocabulary else [])


@contextlib.contextmanager
def _report_progress(config: TokenizerConfig, log: Callable[[str], None], folder: pathlib.Path) -> Iterator[IO[bytes]]:
    """Log the elapsed time and the trainer's last line at intervals; yields the anonymous file in `folder` for the trainer's log."""
    title, started, done = f"Training the tokenizer ({config.type})", time.monotonic(), threading.Event()

    def report(file: int) -> None:
        while not done.wait(_LINE_SECONDS):
            log(f"{title}: {time.monotonic() - started:.0f} s. {_last_log_line(file)}".rstrip())

    log(f"{title} with {config.vocab_size:,} pieces.")
    with tempfile.TemporaryFile(dir=folder) as words:
        reporter = threading.Thread(target=report, args=(words.fileno(),), daemon=True)
        reporter.start()
        try:
            yield words
        finally:
            done.set()
            reporter.join()


def _last_log_line(file: int) -> str:
    """The message of the last complete line of sentencepiece's log (`I0000 ... file.cc:461] EM sub_iter=0 ...`), or ""."""
    size = os.fstat(file).st_size
    lines = os.pread(file, 2000, max(0, size - 2000)).decode(errors="replace").split("\n")[:-1]
    return lines[-1].partition("] ")[2][:120] if lines else ""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a WordPiece or byte-level BPE tokenizer.

    Args:
      texts: documents or sentences, read once. Of more than sentencepiece_training.MAX_LINES lines, every n-th is used.
      config: type ("wordpiece" or "byte_bpe"), vocab_size, keep_newlines and lowercase are used.

    Raises:
      TokenizerError: there is no text, vocab_size is too large or too small, or WordPiece is to keep line breaks.
    """
    if config.type == "wordpiece" and config.keep_newlines:
        raise TokenizerError(
            "config.tokenizer.keep_newlines=True, but WordPiece turns line breaks into spaces. Train another type "
            "(byte_bpe, unigram or bpe), or set --config.tokenizer.keep_newlines=False."
        )
    lines = sample_lines(texts)
    if not any(line.strip() for line in lines):
        raise TokenizerError(
            "There is no text to train a tokenizer on: every document is empty. Check config.data.source."
        )
    tokenizer = _train(lines, config)
    if tokenizer.size < config.vocab_size:
        size = tokenizer.size
        while (fitting := _train(lines, dataclasses.replace(config, vocab_size=size)).size) < size:
            size = fitting  # fewer ids allow fewer characters, which give fewer pieces
        raise TokenizerError(
            f"The corpus is too small for config.tokenizer.vocab_size={config.vocab_size}: its text gives at most "
            f"{size} pieces. Set --config.tokenizer.vocab_size={size} or less, or train on more text."
        )
    return tokenizer


def _train(lines: list[str], config: TokenizerConfig) -> Tokenizer:
    files = _train_wordpiece(lines, config) if config.type == "wordpiece" else _train_bytes(lines, config)
    files = dict(tokenizer_from_files(files, f"trained {config.type}").files)
    # Loading as the named class has put its special tokens into tokenizer.json, which now defines everything for any model.
    settings = json.loads(files["tokenizer_config.json"])
    settings.pop("do_lower_case", None)
    files["tokenizer_config.json"] = json.dumps(settings | {"tokenizer_class": PLAIN_CLASS}).encode()
    return tokenizer_from_files(files, f"trained {config.type}")


def _train_wordpiece(lines: list[str], config: TokenizerConfig) -> dict[str, bytes]:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [*_WORDPIECE_ROLES, *sentinels(config)]
    alphabet = _alphabet(lines, backend.normalizer, config.vocab_size - len(special))
    # The library numbers the pieces that continue a word in the order of a hash table, which differs between processes, and breaks
    # ties between merges by number. Passing them as special tokens fixes their numbers.
    pinned = [*special, *alphabet, *(f"##{character}" for character in alphabet if _continues_words(character))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=_MIN_COUNT,
        special_tokens=pinned,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    vocab = backend.get_vocab(with_added_tokens=False)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": config.lowercase,
        "additional_special_tokens": sentinels(config),
    }
    return {
        "vocab.txt": "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def _alphabet(lines: list[str], normalizer: normalizers.Normalizer, max_ids: int) -> list[str]:
    """Return the most frequent characters of the normalized text that cover _COVERAGE of it, in order of their code points.

    Their forms (at the start of a word, and inside one) take at most `max_ids` ids.
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        counts.update(normalizer.normalize_str(line))
    found = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    total, covered, forms = sum(counts[character] for character in found), 0, 0
    alphabet: list[str] = []
    for character in found:
        forms += 1 + _continues_words(character)
        if covered >= _COVERAGE * total or forms > max_ids:
            break
        alphabet.append(character)
        covered += counts[character]
    return sorted(alphabet)


def _continues_words(character: str) -> bool:
    """Whether WordPiece can find a character inside a word: not punctuation, nor an ideograph, which is its own word."""
    return character.isalnum() and not ("\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff")


def _train_bytes(lines: list[str], config: TokenizerConfig) -> dict[str, bytes]:
    special = [*_BYTE_ROLES, *sentinels(config)]
    min_size = len(special) + 256
    if config.vocab_size < min_size:
        raise TokenizerError(
            f"config.tokenizer.vocab_size={config.vocab_size} is too small: byte_bpe needs {min_size} pieces for 256 bytes "
            f"and {len(special)} special tokens. Set --config.tokenizer.vocab_size={min_size} or more."
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=_MIN_COUNT,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    ending = "\n" if config.keep_newlines else ""
    backend.train_from_iterator((line + ending for line in lines), trainer)
    model = json.loads(backend.to_str())["model"]
    settings = {"tokenizer_class": "RobertaTokenizer", "additional_special_tokens": sentinels(config)}
    merges = (" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"])
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges)).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
