"""A sentencepiece model as a tokenizer of the `tokenizers` library that gives the same ids.

The library adds scores up in 64 bits, sentencepiece in 32: of two ways to divide a word whose scores are equal, or differ by
less than sentencepiece can tell late in a long text, the two may choose differently.
"""

from __future__ import annotations

import re

from tokenizers.models import BPE, Unigram

from lm_research.errors import TokenizerError
from lm_research.tokenizers import sentencepiece_model as spm
from lm_research.tokenizers.sentencepiece_rules import SPACE, normalizer_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers

_NEVER = 1000.0  # nats below the rarest piece: what no text is divided into
_MANY = 10_000  # spaces
_BYTE_NAMES = "<>x0123456789ABCDEF"


def to_backend(proto: bytes, literal: bool, name: str) -> Tokenizer:
    """The tokenizer, without special tokens around texts; control pieces in a text are found as such.

    Args:
      proto: the serialized model.
      literal: whether a text may hold SPACE, as characters outside of the vocabulary.
      name: of the model, for messages.

    Raises:
      TokenizerError: the model is one of whole words.
    """
    model = spm.read_model(proto)
    if model.kind not in (spm.UNIGRAM, spm.BPE, spm.CHAR):
        raise TokenizerError(f"{name}: a sentencepiece model of whole words has no counterpart in tokenizer.json.")
    space = " " if literal else SPACE
    pieces = [(text.replace(SPACE, space), score, sort) for text, score, sort in model.pieces]
    tokenizer = Tokenizer((_unigram if model.kind == spm.UNIGRAM else _bpe)(pieces, model))
    normalizer = normalizer_of(model, space)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    splits = _splits(pieces, model, space)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    steps = [decoders.Replace(SPACE, " ")] * (not literal) + [decoders.ByteFallback(), decoders.Fuse()]
    if model.removes_spaces or model.adds_prefix:
        steps.append(decoders.Strip(content=" ", left=_MANY if model.removes_spaces else 1))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text, _, sort in model.pieces if sort == spm.CONTROL]
    )
    whole = [text for text, _, sort in pieces if sort == spm.USER_DEFINED and len(text) > 1]
    if model.kind != spm.UNIGRAM:  # no merges lead there
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return tokenizer


def _unigram(pieces: list[tuple[str, float, int]], model: spm.SentencePieceModel) -> Unigram:
    scores = [score for _, score, sort in pieces if sort == spm.NORMAL]
    least, most = min(scores, default=0.0), max(scores, default=0.0)

    def score_of(text: str, score: float, sort: int) -> float:
        if sort == spm.USER_DEFINED:  # always taken
            return len(text.encode()) * most - 0.1
        return score if sort == spm.NORMAL else least - _NEVER

    return Unigram([(piece[0], score_of(*piece)) for piece in pieces], model.unk_id, model.byte_fallback)


def _bpe(pieces: list[tuple[str, float, int]], model: spm.SentencePieceModel) -> BPE:
    """Merges in the order of what they make (none for a model of characters); of several that make the same, the one that sentencepiece would meet first."""
    vocab = {text: number for number, (text, _, _) in enumerate(pieces)}
    normal = {text: score for text, score, sort in pieces if sort == spm.NORMAL}
    merges = []
    for text, score in normal.items():
        for cut in range(len(text) - 1, 0, -1):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                # Of x y z where x y = y z the left pair comes first; only there does the text begin with y.
                merges.append((-score, vocab[text], not text.startswith(right), -cut, left, right))
    return BPE(
        vocab,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=pieces[model.unk_id][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _splits(
    pieces: list[tuple[str, float, int]], model: spm.SentencePieceModel, space: str
) -> list[pre_tokenizers.PreTokenizer]:
    """Where a text may be divided before pieces are looked for, because none of them is on both sides."""
    normal = [text for text, _, sort in pieces if sort == spm.NORMAL]
    found: list[pre_tokenizers.PreTokenizer] = []
    # A text that spells the name of a byte is not that byte: where it could only be read so, its name is divided.
    unknown = set(_BYTE_NAMES) - set("".join(normal))
    if model.byte_fallback and model.kind == spm.UNIGRAM and unknown:
        found.append(pre_tokenizers.Split(Regex(f"[{''.join(sorted(unknown))}]"), "isolated"))
    if all(re.fullmatch(f"{space}*[^{space}]*", text) for text in normal):
        found.append(pre_tokenizers.Split(Regex(f"{space}+[^{space}]*"), "isolated"))
    return found
