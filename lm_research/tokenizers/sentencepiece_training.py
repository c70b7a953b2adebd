"""Training sentencepiece models (Kudo and Richardson, EMNLP 2018); the same text gives the same bytes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

import sentencepiece

from lm_research.common.texts import replace_surrogates
from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import ROLES

MAX_LINES = 1_000_000  # lines to train on
MAX_CHARACTERS = 200_000_000  # their total length: more text needs more memory and improves little
_LINE_CHARACTERS = (
    4000  # longer lines are split, so that with four bytes each they stay under max_sentence_length below
)
_THREADS = 16  # fixed, not the machine's number of cores, because it affects the result (floats are summed per thread)


def train_model(texts: Iterable[str], config: TokenizerConfig, words: IO[bytes] | None = None) -> bytes:
    """Train a model whose pieces 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK], and serialize it.

    Characters outside the vocabulary become UTF-8 byte pieces, so nothing is unknown. With keep_newlines, decoding restores text
    exactly; otherwise it is normalized (NFKC, runs of white space become one space).

    Args:
      texts: documents or sentences, read once. Of more than MAX_LINES lines, every n-th is used.
      config: type, vocab_size, sentinels and keep_newlines are used.
      words: file that receives sentencepiece's log.

    Raises:
      TokenizerError: there is no text, or vocab_size is too large or too small; the message has a valid size.
    """
    model = io.BytesIO()
    try:
        lines, options = iter(sample_lines(texts)), _trainer_options(config)
        if words is not None and _has_stderr():
            options |= dict(minloglevel=0, logstream=words)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    except RuntimeError as error:
        raise _training_error(str(error), config) from error
    return model.getvalue()


def _has_stderr() -> bool:
    """Whether sys.stderr is file descriptor 2, where sentencepiece writes; in a notebook it is not."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def sentinels(config: TokenizerConfig) -> list[str]:
    """Names of the sentinel tokens, which follow the tokens with roles in a trained tokenizer."""
    return [f"<extra_id_{number}>" for number in range(config.sentinels)]


def _trainer_options(config: TokenizerConfig) -> dict[str, Any]:
    options: dict[str, Any] = dict(
        model_type=config.type,
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
    """Convert sentencepiece's error message to a TokenizerError with a fix."""
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
    """Return lines spread evenly over the texts: all, or every n-th if they exceed MAX_LINES or MAX_CHARACTERS."""
    sample: list[str] = []
    stride, characters = 1, 0
    for number, line in enumerate(_lines(map(replace_surrogates, texts))):
        if number % stride:
            continue
        sample.append(line)
        characters += len(line)
        if len(sample) > MAX_LINES or characters > MAX_CHARACTERS:
            sample = sample[::2]
            stride *= 2
            characters = sum(map(len, sample))
    return sample


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
