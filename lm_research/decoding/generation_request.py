"""A call of `generate`: what it is given, checked, and as the arrays that programs take."""

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
from lm_research.decoding.generation_config import (
    TOKENS,
    GenerationConfig,
    LengthLimits,
    make_filters,
    make_options,
    make_rules,
)
from lm_research.decoding.prompts import (
    as_rows,
    first_positions,
    longest,
    make_prompts,
    source_rows,
    unhidden,
    uses_document_separator,
    without_padding,
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
    """The engine of a model, made at its first use and again when its parameters are other ones."""
    if lm.engine is None or lm.engine.source_params is not lm.params:
        if lm.definition.head.name not in HEADS:
            raise UserError(
                f"This model predicts {lm.definition.head.name!r}, not text. Read it with head='causal_lm' (a decoder) or "
                "'seq2seq_lm' (an encoder-decoder)."
            )
        if not lm.definition.arch.causal:
            raise UserError(
                "This model sees what comes later (its config.json says is_decoder: false), so it cannot write. Read it with "
                "head='causal_lm', which makes it a decoder."
            )
        lm.engine = Engine(lm.definition, lm.params)
    return lm.engine


class Request:
    """A call: its options, its prompts as a batch, and what programs are told."""

    def __init__(
        self, lm: Any, arguments: Mapping[str, Any], inputs: Mapping[str, Any], texts: str | Sequence[str] | None
    ) -> None:
        self.engine, self.tokenizer, arch = engine_of(lm), lm.tokenizer, lm.definition.arch
        self.options = options = resolve_options(lm, arguments, texts is not None)
        _check_options(options, arguments, arch.vocab_size)
        given = _given(lm, inputs, texts, options)
        self.sources = sources = given if arch.encoder is not None else None
        if sources is not None:
            decoder_mask = inputs.get("decoder_attention_mask")
            self.rows = _decoder_rows(options, len(sources), inputs.get("decoder_input_ids"), decoder_mask)
            shown: Any = self.rows
            _check_source(sources, arch.encoder)
        else:
            if inputs.get("decoder_input_ids") is not None:
                raise UserError(
                    "This model is a plain decoder: it has no decoder_input_ids. Give input_ids or prompts."
                )
            self.rows, shown = given, given if inputs.get("input_ids") is None else inputs["input_ids"]
        # What the new text is to be read behind: a text that was given as one. An answer stands alone.
        self.before = given if sources is None and texts is not None else [[]] * len(given)
        for rows, reader in ((given, arch.encoder or arch), (self.rows, arch)):
            _check_ids([unhidden(row) for row in rows] if rows is sources else rows, reader.vocab_size)
            _check_room(longest(rows), reader)
        ids = inputs.get("input_ids") if sources is None else None
        hidden = [
            len(all_ids) - len(row) for all_ids, row in zip(self.rows if ids is None else ids, self.rows, strict=True)
        ]
        self.first = first_positions(arch, hidden)
        self.shown = pad_left(shown, options.pad)
        width = self.shown.shape[1]
        limit = arch.max_length if arch.positions == "learned" else 0
        before = max(0, *self.first) if self.first else 0
        self.lengths = LengthLimits(options, width, longest(self.rows) + before, limit)
        max_length = arch.encoder.max_length if sources is not None and arch.encoder.positions == "learned" else 0
        self.prompts = make_prompts(
            self.rows, options.pad, sources, self.engine.rows_multiple, max_length=max_length, first=self.first
        )
        self.count, self.slots = len(self.rows), self.prompts.tokens_BP.shape[1]
        known = self.tokenizer.size if self.tokenizer else arch.vocab_size
        vocabulary = known if known < arch.vocab_size else 0
        self.settings: Settings = {
            "rules": make_rules(options, self.lengths, width, vocabulary),
            "filters": make_filters(options),
            "ends_E": np.asarray(options.ends or [-1], np.int32),
            "pad": np.int32(options.pad),
            "seed_B": self._seeds(),
        }
        if (
            "encoder_repetition_penalty" in self.settings["rules"]
            or "encoder_no_repeat_ngram" in self.settings["rules"]
        ):
            if sources is None:
                raise UserError("encoder_repetition_penalty and encoder_no_repeat_ngram_size need an encoder-decoder.")

    def _seeds(self) -> np.ndarray:
        seed, count = self.options.seed, self.count
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        seeds = [int(one) % 2**32 for one in np.ravel(np.asarray(seed, object))]
        if np.ndim(seed) and len(seeds) != count:
            raise UserError(f"seed has {len(seeds)} numbers for {count} prompts: give one number, or one for each.")
        filled = np.zeros(len(self.prompts.start_B), np.uint32)
        filled[:count] = seeds
        return filled

    def plan(self) -> DecodeSpec:
        options, vocab = self.options, self.engine.definition.arch.vocab_size
        return DecodeSpec(
            slots=bucket_size(self.slots + self.lengths.max_new_tokens),
            copies=options.num_return_sequences,
            sample=options.do_sample,
            candidates=min(bucket_size(options.top_k), vocab) if options.do_sample and 0 < options.top_k < vocab else 0,
            logprobs=options.output_logprobs or options.top_logprobs > 0,
            best=options.top_logprobs,
        )

    def cut(self, rows: np.ndarray) -> list[list[int]]:
        """New tokens of each row up to its first end."""
        ends, cut = set(self.options.ends), []
        for row in rows.tolist():
            stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
            cut.append(row[:stop])
        return cut


def beam_plan(options: GenerationConfig, max_new_tokens: int) -> BeamPlan:
    """What a beam search for `max_new_tokens` new tokens is compiled for."""
    return BeamPlan(
        steps=bucket_size(max_new_tokens),
        beams=options.num_beams,
        groups=options.num_beam_groups,
        ends=len(options.ends),
        sample=options.do_sample,
        constrained=options.force_words_ids is not None,
    )


def beam_settings(options: GenerationConfig, max_new_tokens: int) -> Settings:
    """What a beam search is told beside the usual settings."""
    # As transformers fills beams: a padding token of 0 counts as none.
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


# --- what is given ----------------------------------------------------------------------------------------------------


def resolve_options(lm: Any, given: Mapping[str, Any], texts: bool) -> GenerationConfig:
    """Options over those of the model's files, with the tokens that the tokenizer knows: the end, and the language to write in.

    That language is tgt_lang; else what the files of the model name; else, of `texts`, what those of the tokenizer name: what goes
    with token ids is up to the caller.

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
    fresh = {name: token for name, token in opening.items() if given.get(name) is None}
    return dataclasses.replace(options, **fresh)


def _given(lm: Any, inputs: Mapping[str, Any], texts: Any, options: GenerationConfig) -> list[list[int]]:
    """Token lists of prompts, or of what an encoder reads."""
    ids = inputs.get("input_ids")
    if texts is not None and ids is not None:
        raise UserError("generate takes prompts (texts) or input_ids (token ids), not both.")
    if ids is not None:
        mask = inputs.get("attention_mask")
        if lm.definition.arch.encoder is not None:  # without a mask transformers 5 lets encoders read padding, too
            return as_rows("input_ids", ids) if mask is None else source_rows(ids, mask)
        rows = as_rows("input_ids", ids, mask)
        if mask is not None:
            return rows
        return without_padding(rows, options.pad_token_id, options.ends)
    begin = next((token for token in (options.bos_token_id, *options.ends[:1]) if token is not None), None)
    if texts is None:
        if options.bos_token_id is None or lm.definition.arch.encoder is not None:
            raise UserError("generate needs prompts (texts) or input_ids (token ids) to continue.")
        return [[options.bos_token_id]]
    texts = check_texts(texts)
    if lm.tokenizer is None:
        raise UserError("The model's directory has no tokenizer, so prompts can't be read. Give input_ids.")
    rows = encode(lm.tokenizer, texts, lm.definition.arch.encoder is not None, options.src_lang)
    if begin is None and not all(rows):
        raise UserError("A prompt is empty and the model names no bos_token_id to begin with. Give that, or a text.")
    return rows if begin is None else [row or [begin] for row in rows]


def check_texts(texts: Any) -> list[str]:
    """Prompts as a list, without halves of characters (texts.py); raises a UserError if they are not a text or texts."""
    if not isinstance(texts, str | Iterable):
        raise UserError(f"prompts is a text or a list of texts; got {texts!r}. Token ids are given as input_ids.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise UserError("prompts is an empty list. Give at least one text.")
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"prompts holds {str(text)[:80]}, which is no text. Token ids are given as input_ids.")
    return replace_surrogates(texts)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], for_encoder: bool = False, language: str | None = None
) -> list[list[int]]:
    """Texts with the special tokens that the tokenizer puts around them; those of a `language` where it is not the tokenizer's own.

    Those of plain ones begin with the separator of documents or, for encoders, end with the end token. What a tokenizer made for
    encoders puts around a text, a causal model has not learned with: it too reads the separator.
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
    """Texts as a model has learned to read them: special tokens around them, cut at its length, padded.

    Args:
      tokenizer: of the model.
      arch: its architecture.
      texts: at least one; or token ids, which are read as they are.
      max_length: tokens that are read of each, if less than the model can.
      framed: whether a decoder too has learned special tokens around texts (as tasks have them), and not only the separator before.

    Returns:
      input_ids and attention_mask [B, L], and token_type_ids where the model has types; L is one of few lengths.

    Raises:
      UserError: no tokenizer, or ids that are none of the model's.
    """
    limit = min(filter(None, ((arch.encoder or arch).max_length, max_length)), default=0)
    if not are_texts(texts):
        rows = as_rows("texts", texts)
        _check_ids(rows, (arch.encoder or arch).vocab_size)
        batch = _filled([row[: limit or None] for row in rows])
    elif tokenizer is None:
        raise UserError("This model came without a tokenizer, so it cannot read texts. Set lm.tokenizer.")
    elif tokenizer.adds_special_tokens or framed or arch.kind != "decoder":
        batch = with_special_tokens(tokenizer)(
            list(texts), padding=True, truncation=limit > 0, max_length=limit or None
        )
    else:  # a run's own, that knows a separator before texts and nothing behind them
        batch = _filled([row[: limit or None] for row in encode(tokenizer, texts)])
    batch = {name: x[:, : limit or None] for name, x in batch.items()}
    _check_room(batch["input_ids"].shape[1], arch.encoder or arch)
    # Filled up to a multiple of 32 tokens, so that few shapes are compiled, or to what the model takes.
    width = batch["input_ids"].shape[1]
    more = min(-width % 32, limit - width) if limit else -width % 32
    return {name: np.pad(x, ((0, 0), (0, more))) for name, x in batch.items()}


def are_texts(texts: Sequence[Any]) -> TypeGuard[Sequence[str]]:
    """Whether these are texts, and not token ids of each."""
    return isinstance(texts[0], str)  # tokenizers refuse a mixture


def _filled(rows: Sequence[list[int]]) -> dict[str, np.ndarray]:
    """input_ids and attention_mask [B, L] of rows, filled up behind."""
    lengths, width = np.array([len(row) for row in rows]), longest(rows)
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    return {"input_ids": ids, "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int32)}


def _decoder_rows(options: GenerationConfig, count: int, ids: Any, mask: Any) -> list[list[int]]:
    start = options.decoder_start_token_id if options.decoder_start_token_id is not None else options.bos_token_id
    if ids is None:
        if start is None:
            raise UserError(
                "The model's files name no decoder_start_token_id. Give it, or decoder_input_ids: the token that the decoder "
                "begins with, for multilingual models the language to write in."
            )
        return [[start]] * count
    rows = as_rows("decoder_input_ids", ids, mask)
    if len(rows) != count:
        raise UserError(f"decoder_input_ids has {len(rows)} rows, input_ids {count}: give one for each.")
    if start is not None and all(row[0] != start for row in rows):
        rows = [[start, *row] for row in rows]
    return rows


def _check_options(options: GenerationConfig, given: Mapping[str, Any], size: int) -> None:
    """Raises a UserError for tokens and numbers of them that the model has not.

    Only what is given is looked at: files of models often name tokens of a larger vocabulary, which then never come.
    """
    for name in TOKENS:
        for token in _flat([one for one, _ in options.biases] if name == "sequence_bias" else getattr(options, name)):
            if given.get(name) is not None and not 0 <= token < size:
                raise UserError(f"{name} holds the token {token}, but this model's are from 0 to {size - 1}.")
    if options.top_logprobs > size:
        raise UserError(f"top_logprobs={options.top_logprobs} is more than the model's {size} tokens. Lower it.")


def _flat(tokens: Any) -> list[int]:
    """All numbers of nested lists."""
    if tokens is None:
        return []
    return [one for inner in tokens for one in _flat(inner)] if hasattr(tokens, "__len__") else [tokens]


def _check_ids(rows: Sequence[Sequence[int]], size: int) -> None:
    for row in rows:
        if min(row) < 0 or max(row) >= size:
            raise UserError(
                f"A prompt holds the token {min(row) if min(row) < 0 else max(row)}, outside of 0 to {size - 1}. Is it another "
                "model's tokenizer?"
            )


def _check_room(tokens: int, arch: Architecture) -> None:
    """Raises a UserError if attention among so many tokens takes more memory than a device has free.

    Kernels of accelerators write no scores down; a CPU, and relative positions anywhere, do: [heads, L, L] of float32 for a row.
    """
    needed, room = 4 * arch.num_heads * tokens**2, free_bytes()
    if needed > room and (
        jax.default_backend() == "cpu" or any(spec.positions in ("relative", "alibi") for spec in arch.layers)
    ):
        raise UserError(
            f"A text has {tokens:,} tokens, among which attention takes {needed / 2**30:,.0f} GiB, and the device has {room / 2**30:,.0f} free. "
            "Shorten it, for example with tokenizer(..., truncation=True), or give it in pieces."
        )


def _check_source(sources: Sequence[Sequence[int]], encoder: Any) -> None:
    if encoder.positions == "learned" and longest(sources) > encoder.max_length:
        raise UserError(
            f"A text has {longest(sources)} tokens, but the encoder has positions for {encoder.max_length}. Shorten it, for "
            "example with tokenizer(..., truncation=True)."
        )


def pad_left(rows: Any, pad: int) -> np.ndarray:
    """Rows as an array, lists padded on the left."""
    if isinstance(rows, list | tuple) and not all(len(row) == len(rows[0]) for row in rows):
        width = longest(rows)
        rows = [[pad] * (width - len(row)) + list(row) for row in rows]
    return np.asarray(rows, np.int32)
