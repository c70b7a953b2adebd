"""Word-level tokenizers: text split at white space, and one id for each word of a vocabulary, as in WikiText (Merity et al. 2016).

Words outside the vocabulary become <unk>. With keep_newlines each line break becomes <eos>, so that a file read as one document has
the tokens that published perplexities count.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable

from lm_research.common.documents import read_bytes
from lm_research.common.lines import split_lines
from lm_research.common.paths import as_path
from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.hf_settings import PLAIN_CLASS, TOKENIZER_JSON
from lm_research.tokenizers.loading import tokenizer_from_files
from lm_research.tokenizers.sentencepiece_training import sentinels
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

UNKNOWN, END = "<unk>", "<eos>"
_SPACE = re.compile(r"\s+")


def make_word_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Make the tokenizer of config.type=word.

    Args:
      texts: documents or sentences, whose words are counted unless config.vocabulary names a file.
      config: vocabulary, vocab_size, keep_newlines and sentinels are used.

    Raises:
      TokenizerError: the vocabulary cannot be read, or the texts have fewer words than vocab_size.
    """
    special = [UNKNOWN, END, *sentinels(config)]
    words = _read(config.vocabulary) if config.vocabulary else _count(texts, config, special)
    words += [token for token in special if token not in set(words)]
    vocab = {word: number for number, word in enumerate(words)}
    backend = Backend(models.WordLevel(vocab, unk_token=UNKNOWN))
    if config.keep_newlines:
        backend.normalizer = normalizers.Replace("\n", f" {END} ")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, vocab[END])]
    )
    backend.add_special_tokens(special)
    settings = {"tokenizer_class": PLAIN_CLASS, "unk_token": UNKNOWN, "eos_token": END, "sep_token": END}
    files = {TOKENIZER_JSON: backend.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    return tokenizer_from_files(files, "word vocabulary")


def read_vocabulary(path: str) -> bytes:
    """Read the file of config.vocabulary; raise a TokenizerError if that is not possible."""
    return read_bytes(as_path(path).expanduser(), error=TokenizerError, fix="Check config.tokenizer.vocabulary.")


def _read(path: str) -> list[str]:
    try:
        words = split_lines(read_vocabulary(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text ({error}). Convert it with `iconv`.") from error
    first: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        if not word or _SPACE.search(word):
            raise TokenizerError(
                f"{path}, line {number} is {word[:80]!r}. Write one word on each line, without spaces."
            )
        if first.setdefault(word, number) != number:
            raise TokenizerError(f"{path}, line {number} repeats the word {word!r} of line {first[word]}. Remove it.")
    return words


def _count(texts: Iterable[str], config: TokenizerConfig, special: list[str]) -> list[str]:
    """Return the special tokens and the most frequent words, equally frequent ones in the order of their code points."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text.split())
    counts -= collections.Counter({token: counts[token] for token in special})
    if not counts:
        raise TokenizerError("There is no text to count words of: every document is empty. Check config.data.source.")
    if len(special) + len(counts) < config.vocab_size:
        raise TokenizerError(
            f"The corpus is too small for config.tokenizer.vocab_size={config.vocab_size}: it has {len(counts):,} words and "
            f"{len(special)} special tokens. Set --config.tokenizer.vocab_size={len(special) + len(counts)} or less."
        )
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return [*special, *words[: config.vocab_size - len(special)]]
