"""Training a vocabulary, and with the `tokenizers` library WordPiece and byte-level BPE; the same text gives the same bytes.

What comes out of that library are the files of a published tokenizer of that sort (vocab.txt; vocab.json and merges.txt), so that anything
that reads those reads these.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
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
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

Prepare = Callable[[Tokenizer], Tokenizer]
LIBRARY_KINDS = ("wordpiece", "byte_bpe")
_WORDPIECE_ROLES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BYTE_ROLES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # as RoBERTa's vocabulary begins
_COVERAGE = (
    0.9995  # share of the text whose characters WordPiece knows; the rest are unknown, as in BERT's vocabularies
)
_MIN_COUNT = 2  # of a pair of pieces that becomes a piece
_LINE_SECONDS = 15.0  # between lines about a training that is under way


def learn_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, path: pathlib.Path, log: Callable[[str], None]
) -> Tokenizer:
    """Learns a vocabulary of any kind; `log` is told now and then how far that is.

    Args:
      texts, config: see `train_model` and `train_tokenizer`, which raise.
      path: of the sentencepiece model that the kinds of that library leave.
    """
    with _report_progress(config, log, path.parent) as words:
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
    """The tokenizer that the config names, or else learns of `texts`, as its files say that this puts into `folder`.

    `prepare`: changes it before.

    Raises:
      TokenizerError: it cannot be loaded or learned.
    """
    if config.path:
        tokenizer = load_tokenizer(config.path)
    else:
        tokenizer = learn_tokenizer(texts, config, folder / "tokenizer.model", log)
    prepare(tokenizer).save_files(folder)
    return load_tokenizer(folder)


def tokenizer_key(config: TokenizerConfig, *names: str, prepare: Prepare = lambda tokenizer: tokenizer) -> list[object]:
    """What tells the tokenizer of `make_tokenizer` from others, for the name of a corpus: its digest or, if it is learned, these keys too."""
    if config.path:
        return [prepare(load_tokenizer(config.path)).digest]
    return [getattr(config, name) for name in ("type", "vocab_size", "lowercase", *names)]


@contextlib.contextmanager
def _report_progress(config: TokenizerConfig, log: Callable[[str], None], folder: pathlib.Path) -> Iterator[IO[bytes]]:
    """Tells how long a training takes and what the trainer wrote last; the value is the file for that, a nameless one in `folder`."""
    title, started, done = f"Training the tokenizer ({config.type})", time.monotonic(), threading.Event()

    def tell(file: int) -> None:
        while not done.wait(_LINE_SECONDS):
            log(f"{title}: {time.monotonic() - started:.0f} s. {_last_log_line(file)}".rstrip())

    log(f"{title} of {config.vocab_size:,} pieces.")
    with tempfile.TemporaryFile(dir=folder) as words:
        teller = threading.Thread(target=tell, args=(words.fileno(),), daemon=True)
        teller.start()
        try:
            yield words
        finally:
            done.set()
            teller.join()


def _last_log_line(file: int) -> str:
    """The last whole line of sentencepiece's log (`I0000 ... file.cc:461] EM sub_iter=0 size=55407 ...`), or ""."""
    size = os.fstat(file).st_size
    lines = os.pread(file, 2000, max(0, size - 2000)).decode(errors="replace").split("\n")[:-1]
    return lines[-1].partition("] ")[2][:120] if lines else ""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learns a vocabulary.

    Args:
      texts: documents or sentences, read once; of very many lines, every n-th is taken (sentencepiece_training.MAX_LINES).
      config: type ("wordpiece" or "byte_bpe"), vocab_size, keep_newlines and lowercase are used.

    Raises:
      TokenizerError: there is no text, vocab_size does not suit it, or the kind cannot keep line breaks.
    """
    if config.type == "wordpiece" and config.keep_newlines:
        raise TokenizerError(
            "config.tokenizer.keep_newlines=True, but WordPiece turns line breaks into spaces. Train another kind "
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
            size = fitting  # fewer ids leave room for fewer characters, and those for fewer pieces
        raise TokenizerError(
            f"The corpus is too small for config.tokenizer.vocab_size={config.vocab_size}: its text gives at most "
            f"{size} pieces. Set --config.tokenizer.vocab_size={size} or less, or train on more text."
        )
    return tokenizer


def _train(lines: list[str], config: TokenizerConfig) -> Tokenizer:
    files = _train_wordpiece(lines, config) if config.type == "wordpiece" else _train_bytes(lines, config)
    files = dict(tokenizer_from_files(files, f"trained {config.type}").files)
    # The class that was named has told what stands around texts. Now tokenizer.json holds all, whatever model it goes with.
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
    # The library numbers the pieces that go on with a word in the order of a hash table that differs from process to
    # process, and breaks ties between merges by number. Given beforehand, as if they were special, they have fixed ones.
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


def _alphabet(lines: list[str], normalizer: normalizers.Normalizer, room: int) -> list[str]:
    """Characters of the normalized text, in order of their code points: the most frequent ones, until they cover it.

    No more than leave their two forms (alone, and inside a word) `room` ids.
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        counts.update(normalizer.normalize_str(line))
    found = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    total, covered, forms = sum(counts[character] for character in found), 0, 0
    kept: list[str] = []
    for character in found:
        forms += 1 + _continues_words(character)
        if covered >= _COVERAGE * total or forms > room:
            break
        kept.append(character)
        covered += counts[character]
    return sorted(kept)


def _continues_words(character: str) -> bool:
    """Whether WordPiece can find a character inside a word: not punctuation, nor an ideograph, which stands alone."""
    return character.isalnum() and not ("\u3400" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff")


def _train_bytes(lines: list[str], config: TokenizerConfig) -> dict[str, bytes]:
    special = [*_BYTE_ROLES, *sentinels(config)]
    smallest = len(special) + 256
    if config.vocab_size < smallest:
        raise TokenizerError(
            f"config.tokenizer.vocab_size={config.vocab_size} is too small: byte_bpe needs {smallest} pieces for 256 bytes "
            f"and {len(special)} special tokens. Set --config.tokenizer.vocab_size={smallest} or more."
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
