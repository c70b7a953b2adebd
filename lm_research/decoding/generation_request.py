"""Requests to `generate`: resolve options, check inputs, and build the arrays that compiled programs take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np

from lm_research.common.rounding import bucket_size
from lm_research.common.texts import replace_surrogates
from lm_research.decoding.beam import STOP_BY_HEURISTIC, STOP_WHEN_EXHAUSTED, STOP_WHEN_FULL, BeamPlan
from lm_research.decoding.engine import DecodeSpec, Engine, Settings
from lm_research.decoding.generation_config import TOKENS, GenerationConfig, as_list, make_options
from lm_research.decoding.generation_settings import LengthLimits, make_filters, make_rules
from lm_research.decoding.prompts import (
    Rows,
    as_rows,
    first_positions,
    longest,
    make_prompts,
    padding_mask,
    seen_rows,
    source_rows,
    unhidden,
    uses_document_separator,
)
from lm_research.errors import UserError
from lm_research.models.architecture import Architecture
from lm_research.parallel.hardware import free_bytes
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.languages import require_languages
from lm_research.tokenizers.run_tokenizer import with_special_tokens
from lm_research.tokenizers.special_tokens import text_ids

HEADS = ("causal_lm", "seq2seq_lm")


def engine_of(lm: Any) -> Engine:
    """Return the engine of a model; it is built at the first use, and again after `lm.params` is replaced."""
    if lm.engine is None or lm.engine.source_params is not lm.params:
        if lm.definition.head.name not in HEADS:
            raise UserError(
                f"This model has head {lm.definition.head.name!r}, which cannot generate text. Load it with head='causal_lm' (a decoder) or "
                "'seq2seq_lm' (an encoder-decoder)."
            )
        if not lm.definition.arch.causal:
            raise UserError(
                "This model attends to later tokens (its config.json has is_decoder: false), so it cannot generate text. Load it "
                "with head='causal_lm', which makes it a decoder."
            )
        lm.engine = Engine(lm.definition, lm.params)
    return lm.engine


class Request:
    """A call of `generate`: its options, its prompts as a batch, and the settings of the programs.

    Attributes:
      options: the resolved options.
      rows: token ids of each prompt (the decoder's, for encoder-decoders); `sources`: those of the encoder, or None.
      before: token ids that new text continues; empty lists unless the prompts of a decoder are texts.
      shown: the prompts as the output repeats them, padded to one length.
      prompts: the batch; the first `count` rows are real, and their tokens fill the first `slots` slots.
      settings: arrays for the compiled programs.
    """

    def __init__(
        self, lm: Any, arguments: Mapping[str, Any], inputs: Mapping[str, Any], texts: str | Sequence[str] | None
    ) -> None:
        self.engine, self.tokenizer, arch = engine_of(lm), lm.tokenizer, lm.definition.arch
        self.options = options = resolve_options(lm, arguments, texts is not None)
        _check_options(options, arguments, arch.vocab_size)
        inputs_read = prompts = _input_rows(lm, inputs, texts, options)
        input_rows = inputs_read.rows
        self.sources = sources = input_rows if arch.encoder is not None else None
        if sources is not None:
            decoder_mask = inputs.get("decoder_attention_mask")
            prompts = _decoder_rows(options, len(sources), inputs.get("decoder_input_ids"), decoder_mask)
            self.rows = prompts.rows
            shown: Any = prompts.seen
            _check_source(sources, arch.encoder)
        else:
            if inputs.get("decoder_input_ids") is not None:
                raise UserError(
                    "This model is a plain decoder: it has no decoder_input_ids. Give input_ids or prompts."
                )
            self.rows, shown = input_rows, input_rows if inputs.get("input_ids") is None else inputs["input_ids"]
        self.before = input_rows if sources is None and texts is not None else [[]] * len(input_rows)
        for rows, stack in ((input_rows, arch.encoder or arch), (self.rows, arch)):
            _check_ids([unhidden(row) for row in rows] if rows is sources else rows, stack.vocab_size)
            _check_attention_memory(longest(rows), stack)
        hidden = [len(seen) - len(row) for seen, row in zip(prompts.seen, self.rows, strict=True)]
        self.first = first_positions(arch, hidden)
        self.shown = pad_left(shown, options.pad)
        width = self.shown.shape[1]
        limit = arch.max_length if arch.positions == "learned" else 0
        ends = [max(0, first) + len(row) for first, row in zip(self.first or [0] * len(hidden), self.rows, strict=True)]
        self.lengths = LengthLimits(options, width, max(ends), limit)
        if (
            arguments.get("use_cache") is False and not arch.renewed_after
        ):  # all keys would be rotated again for each length
            self.require_steady_rotations("use_cache=False", arch)
        max_length = arch.encoder.max_length if sources is not None and arch.encoder.positions == "learned" else 0
        self.prompts = make_prompts(
            self.rows, options.pad, sources, self.engine.rows_multiple, max_length=max_length, first=self.first
        )
        seen = seen_rows(prompts, None if sources is None else inputs_read, len(self.prompts.start_B))
        self.prompts = self.prompts._replace(seen=seen)
        self.count, self.slots = len(self.rows), self.prompts.tokens_BP.shape[1]
        num_tokens = self.tokenizer.size if self.tokenizer else arch.vocab_size
        vocabulary = num_tokens if num_tokens < arch.vocab_size else 0
        self.settings: Settings = {
            "rules": make_rules(options, self.lengths, width, vocabulary),
            "filters": make_filters(options),
            "ends_E": np.asarray(options.ends or [-1], np.int32),
            "pad": np.int32(options.pad),
            "seed_B": self._seeds(),
        }

    def _seeds(self) -> np.ndarray:
        seed, count = self.options.seed, self.count
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        seeds = [int(one) % 2**32 for one in np.ravel(np.asarray(seed, object))]
        if np.ndim(seed) and len(seeds) != count:
            raise UserError(
                f"seed has {len(seeds)} numbers for {count} prompts: give one number, or one for each prompt."
            )
        filled = np.zeros(len(self.prompts.start_B), np.uint32)
        filled[:count] = seeds
        return filled

    def plan(self) -> DecodeSpec:
        """What the programs of greedy decoding or sampling are compiled for."""
        options, vocab = self.options, self.engine.definition.arch.vocab_size
        return DecodeSpec(
            slots=bucket_size(self.slots + self.lengths.max_new_tokens),
            copies=options.num_return_sequences,
            sample=options.do_sample,
            candidates=min(bucket_size(options.top_k), vocab) if options.do_sample and 0 < options.top_k < vocab else 0,
            logprobs=options.output_logprobs or options.top_logprobs > 0,
            best=options.top_logprobs,
        )

    def require_steady_rotations(self, option: str, arch: Architecture) -> None:
        """Raise a UserError if rotations would change during the search that `option` selects, which cannot compute a cache again."""
        prompt, limit = longest(self.rows), arch.steady_length
        total = prompt + self.lengths.max_new_tokens
        if limit and total > limit and not (arch.renewed_after and prompt > limit):
            raise UserError(
                f"{option} does not support this model's rotary positions for more than {limit} tokens of prompt and new text, beyond which they "
                f"are scaled, but there may be {total}. Lower max_new_tokens, or leave out {option}."
            )

    def cut(self, rows: np.ndarray) -> list[list[int]]:
        """Truncate each row of new tokens after its first end token."""
        ends, cut = set(self.options.ends), []
        for row in rows.tolist():
            stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            cut.append(row[:stop])
        return cut


def beam_plan(options: GenerationConfig, max_new_tokens: int) -> BeamPlan:
    """Describe the program of a beam search for `max_new_tokens` new tokens."""
    return BeamPlan(
        steps=bucket_size(max_new_tokens),
        beams=options.num_beams,
        groups=options.num_beam_groups,
        ends=len(options.ends),
        sample=options.do_sample,
        constrained=options.force_words_ids is not None,
    )


def beam_settings(options: GenerationConfig, max_new_tokens: int) -> Settings:
    """Make the settings of a beam search, in addition to those of every request."""
    # As in transformers, beams are padded with an end token if the padding token is 0.
    fill = (options.pad_token_id or options.ends[0]) if options.ends else options.pad
    early = (
        STOP_WHEN_EXHAUSTED
        if options.early_stopping == "never"
        else STOP_WHEN_FULL
        if options.early_stopping
        else STOP_BY_HEURISTIC
    )
    return {
        "fill": np.int32(fill),
        "max_new": np.int32(max_new_tokens),
        "length_penalty": np.float32(options.length_penalty),
        "early_stopping": np.int32(early),
        "diversity_penalty": np.float32(options.diversity_penalty),
    }


# --- inputs -----------------------------------------------------------------------------------------------------------


def resolve_options(lm: Any, given: Mapping[str, Any], texts: bool) -> GenerationConfig:
    """Resolve the options of a call with the model's files, and add the tokenizer's end token and the output language.

    Args:
      lm: the model.
      given: arguments of the call.
      texts: whether the prompts are texts. For these the tokenizer's default output language is used if neither tgt_lang nor
        the model's files set one; with token ids the language is up to the caller.

    Raises:
      UserError: as make_options; no such language.
    """
    tokenizer = lm.tokenizer
    options = make_options(given, lm.generation_config, lm.config.to_dict())
    if options.eos_token_id is None and tokenizer is not None:
        end = next((tokenizer.roles[role] for role in ("eos", "sep") if role in tokenizer.roles), None)
        options = dataclasses.replace(options, eos_token_id=end)
    languages = tokenizer.languages if tokenizer is not None else None
    for code in (one for one in (options.src_lang, options.tgt_lang) if one is not None):
        require_languages(languages, code).id_of(code)
    if languages is None or lm.definition.arch.encoder is None:
        return options
    target = options.tgt_lang
    if target is None and texts and not languages.language_of(dataclasses.asdict(options)):
        target = languages.target
    opening = languages.generation_options(target) if target else {}
    tokens = {name: token for name, token in opening.items() if given.get(name) is None}
    return dataclasses.replace(options, **tokens)


def _input_rows(lm: Any, inputs: Mapping[str, Any], texts: Any, options: GenerationConfig) -> Rows:
    """Token ids of each prompt (the encoder's input, for encoder-decoders)."""
    ids, encoder = inputs.get("input_ids"), lm.definition.arch.encoder
    if inputs.get("global_attention_mask") is not None and not (encoder and encoder.has_global_tokens):
        raise UserError("This model has no global attention: leave out global_attention_mask.")
    if texts is not None and ids is not None:
        raise UserError("generate takes prompts (texts) or input_ids (token ids), not both.")
    if ids is not None:
        mask, chosen = inputs.get("attention_mask"), inputs.get("global_attention_mask")
        if lm.definition.arch.encoder is not None:  # as in transformers 5, encoders read padding if there is no mask
            plain = Rows.plain(as_rows("input_ids", ids))
            return plain if mask is None and chosen is None else plain._replace(rows=source_rows(ids, mask, chosen))
        if mask is None:
            mask = padding_mask(as_rows("input_ids", ids), options.pad_token_id, options.ends)
        return Rows.given("input_ids", ids, mask)
    begin = next((token for token in (options.bos_token_id, *options.ends[:1]) if token is not None), None)
    if texts is None:
        if options.bos_token_id is None or lm.definition.arch.encoder is not None:
            raise UserError("generate needs prompts (texts) or input_ids (token ids) to continue.")
        return Rows.plain([[options.bos_token_id]])
    texts = check_texts(texts)
    if lm.tokenizer is None:
        raise UserError("The model's directory has no tokenizer, so prompts cannot be encoded. Give input_ids.")
    rows = encode(lm.tokenizer, texts, lm.definition.arch.encoder is not None, options.src_lang)
    if begin is None and not all(rows):
        raise UserError(
            "A prompt is empty and the model has no bos_token_id to begin with. Give bos_token_id, or a text."
        )
    return Rows.plain(rows if begin is None else [row or [begin] for row in rows])


def check_texts(texts: Any) -> list[str]:
    """Prompts as a list, without halves of characters (texts.py); raises a UserError if they are not a text or texts."""
    if not isinstance(texts, str | Iterable):
        raise UserError(f"prompts is a text or a list of texts; got {texts!r}. Pass token ids as input_ids.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise UserError("prompts is an empty list. Give at least one text.")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"prompts holds {str(text)[:80]}, which is not a text. Pass token ids as input_ids.")
    return replace_surrogates(texts)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], for_encoder: bool = False, language: str | None = None
) -> list[list[int]]:
    """Encode texts with the special tokens that the model was trained with.

    Args:
      tokenizer: of the model. If it adds no special tokens of its own, texts begin with the document separator, or end with
        the end token for encoders. A causal model with a tokenizer made for encoders also reads the separator.
      texts: the texts.
      for_encoder: whether an encoder reads them.
      language: language code whose special tokens are used in place of the tokenizer's source language; None keeps that.
    """
    if language is not None:
        head, tail = require_languages(tokenizer.languages, language).frame_ids(language, tokenizer.eos_id)
        return [[*head, *text_ids(tokenizer, text), *tail] for text in texts]
    if tokenizer.adds_special_tokens and (for_encoder or not uses_document_separator(tokenizer)):
        return [np.asarray(tokenizer(text)["input_ids"])[0].tolist() for text in texts]
    rows = (text_ids(tokenizer, text) for text in texts)
    if for_encoder:
        return [[*ids, tokenizer.eos_id] for ids in rows]
    return [[tokenizer.sep_id, *ids] for ids in rows]


def read_texts(
    tokenizer: Tokenizer | None,
    arch: Any,
    texts: Sequence[str] | Sequence[Sequence[int]],
    max_length: int | None = None,
    framed: bool = False,
) -> dict[str, np.ndarray]:
    """Encode texts as the model was trained to read them: with special tokens, truncated to its length, padded.

    Args:
      tokenizer: of the model.
      arch: its architecture.
      texts: at least one text, or the token ids of each, which are used unchanged.
      max_length: longest length, if less than the model's.
      framed: whether a decoder, too, was trained with special tokens around texts, as tasks are, and not only with the
        separator before them.

    Returns:
      input_ids and attention_mask [B, L], and token_type_ids if the model has types. L is rounded up to a multiple of 32, so
      that few shapes are compiled.

    Raises:
      UserError: there is no tokenizer, or ids are outside the vocabulary.
    """
    limit = min(filter(None, ((arch.encoder or arch).max_length, max_length)), default=0)
    if not are_texts(texts):
        rows = as_rows("texts", texts)
        _check_ids(rows, (arch.encoder or arch).vocab_size)
        batch = _filled([row[: limit or None] for row in rows])
    elif tokenizer is None:
        raise UserError("This model has no tokenizer, so texts cannot be encoded. Set lm.tokenizer.")
    elif tokenizer.adds_special_tokens or framed or arch.kind != "decoder":
        batch = with_special_tokens(tokenizer)(
            list(texts), padding=True, truncation=limit > 0, max_length=limit or None
        )
    else:  # a run's tokenizer: a separator before texts and nothing after them
        batch = _filled([row[: limit or None] for row in encode(tokenizer, texts)])
    batch = {name: x[:, : limit or None] for name, x in batch.items()}
    _check_attention_memory(batch["input_ids"].shape[1], arch.encoder or arch)
    width = batch["input_ids"].shape[1]
    more = min(-width % 32, limit - width) if limit else -width % 32
    return {name: np.pad(x, ((0, 0), (0, more))) for name, x in batch.items()}


def are_texts(texts: Sequence[Any]) -> TypeGuard[Sequence[str]]:
    """Whether these are texts rather than token ids."""
    return isinstance(texts[0], str)  # tokenizers reject a mixture


def _filled(rows: Sequence[list[int]]) -> dict[str, np.ndarray]:
    """Pad rows on the right: input_ids and attention_mask [B, L]."""
    lengths, width = np.array([len(row) for row in rows]), longest(rows)
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    return {"input_ids": ids, "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int32)}


def _decoder_rows(options: GenerationConfig, count: int, ids: Any, mask: Any) -> Rows:
    starts = as_list(options.decoder_start_token_id) or as_list(options.bos_token_id)
    starts = starts * count if len(starts) == 1 else starts
    if starts and len(starts) != count:
        raise UserError(
            f"decoder_start_token_id has {len(starts)} tokens for {count} prompts: give one token, or one for each prompt."
        )
    if ids is None:
        if not starts:
            raise UserError(
                "The model's files have no decoder_start_token_id. Give it, or decoder_input_ids: the token that the decoder "
                "begins with, the output language for multilingual models."
            )
        return Rows.plain([[start] for start in starts])
    found = Rows.given("decoder_input_ids", ids, mask)
    if len(found.rows) != count:
        raise UserError(f"decoder_input_ids has {len(found.rows)} rows, but input_ids has {count}: give one for each.")
    if starts and all(row[0] != start for start, row in zip(starts, found.rows, strict=True)):
        rows, seen = ([[start, *row] for start, row in zip(starts, one, strict=True)] for one in found[:2])
        return Rows(rows, seen, [0] * count)
    return found


def _check_options(options: GenerationConfig, given: Mapping[str, Any], size: int) -> None:
    """Raise a UserError if an argument has a token outside the vocabulary, or asks for more tokens than it has.

    Only arguments of the call are checked: a model's files often list tokens of a larger vocabulary, which has no effect.
    """
    for name in TOKENS:
        for token in _flat([one for one, _ in options.biases] if name == "sequence_bias" else getattr(options, name)):
            if given.get(name) is not None and not 0 <= token < size:
                raise UserError(f"{name} holds the token {token}, but this model's tokens are 0 to {size - 1}.")
    if options.top_logprobs > size:
        raise UserError(f"top_logprobs={options.top_logprobs} is more than the model's {size} tokens. Lower it.")


def _flat(tokens: Any) -> list[int]:
    """Flatten nested lists of numbers."""
    if tokens is None:
        return []
    return [one for inner in tokens for one in _flat(inner)] if hasattr(tokens, "__len__") else [tokens]


def _check_ids(rows: Sequence[Sequence[int]], size: int) -> None:
    for row in rows:
        if min(row) < 0 or max(row) >= size:
            raise UserError(
                f"A prompt holds the token {min(row) if min(row) < 0 else max(row)}, outside of 0 to {size - 1}. Was it encoded "
                "with another model's tokenizer?"
            )


def _check_attention_memory(tokens: int, arch: Architecture) -> None:
    """Raise a UserError if the attention scores of a text of this length exceed the device's free memory.

    Scores, [heads, L, L] of float32 per text, are stored on CPUs, and with positions by distance on every device; fused
    kernels of accelerators do not store them.
    """
    needed, free = 4 * arch.num_heads * tokens**2, free_bytes()
    if needed > free and (jax.default_backend() == "cpu" or any(spec.by_distance for spec in arch.layers)):
        raise UserError(
            f"A text has {tokens:,} tokens, whose attention takes {needed / 2**30:,.0f} GiB, but the device has {free / 2**30:,.0f} GiB free. "
            "Shorten it, for example with tokenizer(..., truncation=True), or split it."
        )


def _check_source(sources: Sequence[Sequence[int]], encoder: Any) -> None:
    if encoder.positions == "learned" and longest(sources) > encoder.max_length:
        raise UserError(
            f"A text has {longest(sources)} tokens, but the encoder has positions for {encoder.max_length}. Shorten it, for "
            "example with tokenizer(..., truncation=True)."
        )


def pad_left(rows: Any, pad: int) -> np.ndarray:
    """Convert rows to an array, padding lists on the left."""
    if isinstance(rows, list | tuple) and not all(len(row) == len(rows[0]) for row in rows):
        width = longest(rows)
        rows = [[pad] * (width - len(row)) + list(row) for row in rows]
    return np.asarray(rows, np.int32)
