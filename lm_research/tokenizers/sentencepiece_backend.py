"""Converting a sentencepiece model to a tokenizer of the `tokenizers` library that gives the same ids.

The library sums scores in 64 bits, sentencepiece in 32: between two segmentations whose scores are equal, or differ by less than
float32 resolves late in a long text, the two may choose differently.
"""

from __future__ import annotations

import re

from tokenizers.models import BPE, Unigram

from lm_research.errors import TokenizerError
from lm_research.tokenizers import sentencepiece_model as spm
from lm_research.tokenizers.sentencepiece_rules import SPACE, normalizer_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers

_NEVER = 1000.0  # nats below the rarest piece: the score of a piece that is never used
_MAX_STRIPPED = 10_000  # spaces
_BYTE_NAMES = "<>x0123456789ABCDEF"


def to_backend(proto: bytes, literal: bool, name: str) -> Tokenizer:
    """Build a tokenizer that adds no special tokens around texts and recognizes control pieces in a text.

    Args:
      proto: the serialized model.
      literal: whether SPACE in a text is a character outside the vocabulary, distinct from a space.
      name: name of the model, for messages.

    Raises:
      TokenizerError: the model is of type word.
    """
    model = spm.read_model(proto)
    if model.kind not in (spm.UNIGRAM, spm.BPE, spm.CHAR):
        raise TokenizerError(f"{name}: a sentencepiece model of type word cannot be written as a tokenizer.json.")
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
        steps.append(decoders.Strip(content=" ", left=_MAX_STRIPPED if model.removes_spaces else 1))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False) for text, _, sort in model.pieces if sort == spm.CONTROL]
    )
    whole = [text for text, _, sort in pieces if sort == spm.USER_DEFINED and len(text) > 1]
    if model.kind != spm.UNIGRAM:  # no merges produce them
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return tokenizer


def _unigram(pieces: list[tuple[str, float, int]], model: spm.SentencePieceModel) -> Unigram:
    scores = [score for _, score, sort in pieces if sort == spm.NORMAL]
    lowest, highest = min(scores, default=0.0), max(scores, default=0.0)

    def score_of(text: str, score: float, sort: int) -> float:
        if sort == spm.USER_DEFINED:  # always taken
            return len(text.encode()) * highest - 0.1
        return score if sort == spm.NORMAL else lowest - _NEVER

    return Unigram([(piece[0], score_of(*piece)) for piece in pieces], model.unk_id, model.byte_fallback)


def _bpe(pieces: list[tuple[str, float, int]], model: spm.SentencePieceModel) -> BPE:
    """Build a BPE model: one merge per pair of pieces that form a piece, by the score of that piece (a character model has none).

    Several pairs may form the same piece; the one that sentencepiece would merge first comes first.
    """
    vocab = {text: number for number, (text, _, _) in enumerate(pieces)}
    normal = {text: score for text, score, sort in pieces if sort == spm.NORMAL}
    merges = []
    for text, score in normal.items():
        for cut in range(len(text) - 1, 0, -1):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                # In x y z where x y = y z the left pair comes first; only there does the text begin with y.
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
    """Return splits of the text before segmentation, at places that no piece spans."""
    normal = [text for text, _, sort in pieces if sort == spm.NORMAL]
    found: list[pre_tokenizers.PreTokenizer] = []
    # A text that spells the name of a byte, "<0x41>", must not become that byte piece: a character of the name that is in no other
    # piece is split off.
    unknown = set(_BYTE_NAMES) - set("".join(normal))
    if model.byte_fallback and model.kind == spm.UNIGRAM and unknown:
        found.append(pre_tokenizers.Split(Regex(f"[{''.join(sorted(unknown))}]"), "isolated"))
    if all(re.fullmatch(f"{space}*[^{space}]*", text) for text in normal):
        found.append(pre_tokenizers.Split(Regex(f"{space}+[^{space}]*"), "isolated"))
    return found
