"""`generate`, `stream` and `score`: decoding with every strategy, from texts or token ids to texts or token ids.

`lm` is a pretrained.LanguageModel; its `definition`, `params`, `tokenizer`, `config` and `generation_config` are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lm_research.common.rounding import bucket_size
from lm_research.decoding import beam, constrained, contrastive, scoring, speculative
from lm_research.decoding.engine import DecodeState
from lm_research.decoding.generation_request import Request, beam_plan, beam_settings, engine_of
from lm_research.decoding.prompts import longest
from lm_research.decoding.streaming import continuation, pieces, stop_at
from lm_research.errors import UserError

STOP_CHECK_EVERY = 16  # new tokens between two searches for stop strings


@dataclasses.dataclass
class GenerateOutput:
    """Results of `generate`: R rows, `num_return_sequences` per prompt, in the order of the prompts.

    Attributes:
      sequences: int32 [R, L], prompts (the decoder's, for encoder-decoders), new tokens and padding.
      new_tokens: new tokens of each row, up to and including its end token.
      texts: decoded new tokens, which continue the prompts if these were texts; None without a tokenizer.
      sequences_scores: float32 [R], log-probability / length ^ length_penalty; beam search only.
      logprobs: log-probabilities of each row's new tokens, in nats, before any logits processor.
      top_ids, top_logprobs: [tokens, T] per row, the T most likely tokens of each step.
      rounds: number of calls of the model; speculative decoding only.
    """

    sequences: np.ndarray
    new_tokens: list[list[int]]
    texts: list[str] | None = None
    sequences_scores: np.ndarray | None = None
    logprobs: list[np.ndarray] | None = None
    top_ids: list[np.ndarray] | None = None
    top_logprobs: list[np.ndarray] | None = None
    rounds: int | None = None


def generate(
    lm: Any,
    input_ids: Any = None,
    prompts: str | Sequence[str] | None = None,
    attention_mask: Any = None,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    assistant_model: Any = None,
    global_attention_mask: Any = None,
    **arguments: Any,
) -> Any:
    """Continue prompts (decoders) or answer texts (encoder-decoders); see LanguageModel.generate.

    Args:
      lm: the model.
      input_ids: token ids [B, L], or lists of different lengths; the encoder's input for encoder-decoders.
      prompts: texts, in place of input_ids.
      attention_mask: [B, L], 1 for real tokens; rows may be padded on either side. If omitted, all tokens are real, except
        that pad_token_id counts as padding in a decoder's input_ids unless it also ends texts.
      decoder_input_ids: token ids [B, T] that an encoder-decoder's output begins with.
      decoder_attention_mask: [B, T], 1 for real tokens of decoder_input_ids.
      assistant_model: a smaller model with the same vocabulary that drafts tokens (speculative decoding).
      global_attention_mask: [B, L], 1 for tokens of input_ids with global attention, in encoders that have it (LED).
      **arguments: fields of GenerationConfig; defaults come from generation_config.json, or else config.json.

    Returns:
      `sequences` [R, L] for input_ids or `texts` for prompts; the whole GenerateOutput with `return_dict_in_generate`.

    Raises:
      UserError: an argument is unknown or conflicts with another, or the model cannot take the inputs.
    """
    inputs = dict(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
        global_attention_mask=global_attention_mask,
    )
    request = Request(lm, arguments, inputs, prompts)
    if assistant_model is not None:
        output: GenerateOutput | None = _speculative(request, lm, assistant_model)
    else:
        *_, output = _run(request)
    assert output is not None, "the last value is the output"
    if request.options.return_dict_in_generate:
        return output
    return output.texts if prompts is not None else output.sequences


def in_pieces(lm: Any, input_ids: Any, piece: int, **arguments: Any) -> Iterator[GenerateOutput | None]:
    """Run `generate` in steps: yield None after every `piece` tokens, so that others can use the device, and then the output.

    All token ids are real, padding included. Contrastive search runs in one step. Raises a UserError as `generate`, at the
    latest in the first step.
    """
    inputs = {"input_ids": input_ids, "attention_mask": [[1] * len(row) for row in input_ids]}
    request = Request(lm, arguments, inputs, None)
    return _run(request, piece)


def _run(request: Request, piece: int = 0) -> Iterator[GenerateOutput | None]:
    """Yield the output of a request; with `piece`, None after every `piece` tokens before it."""
    run = {"tokens": _tokens, "beams": _beams, "contrastive": _contrastive}[request.options.strategy]
    return run(request, piece)


def _output(request: Request, new: list[list[int]], fill: int, **more: Any) -> GenerateOutput:
    """Assemble the output from the new tokens of each row; shorter rows are padded with `fill`."""
    prompts = np.repeat(request.shown, len(new) // len(request.shown), axis=0)
    added = np.full((len(new), longest(new)), fill, np.int32)
    for row, tokens in zip(added, new, strict=True):
        row[: len(tokens)] = tokens
    texts, copies = None, len(new) // len(request.before)
    if request.tokenizer is not None:
        before = [row for row in request.before for _ in range(copies)]
        texts = [continuation(request.tokenizer, *pair) for pair in zip(before, new, strict=True)]
    return GenerateOutput(np.concatenate([prompts, added], axis=1), new, texts, **more)


def _tokens(request: Request, piece: int) -> Iterator[GenerateOutput | None]:
    plan, settings, stops = request.plan(), request.settings, _stops(request)
    state = request.engine.prefill(plan, request.prompts, settings)
    until, last = request.slots, request.slots + request.lengths.max_new_tokens
    while True:
        until = min(last, until + (piece or STOP_CHECK_EVERY if stops or piece else last))
        state = request.engine.decode_until(plan, state, settings, until)
        new = _stopped(request, _new(request, state), stops)
        finished = np.ones(len(state.finished_R), bool)
        finished[: len(new)] = [ended for _, ended in new]
        if until == last or finished.all():
            break
        state = state._replace(finished_R=jax.device_put(finished, state.finished_R.sharding))
        if piece:
            yield None
    yield _finish(request, state, [tokens for tokens, _ in new])


def _stops(request: Request) -> list[str]:
    if request.options.stops and request.tokenizer is None:
        raise UserError("stop_strings need a tokenizer, which the model's directory lacks. Use eos_token_id=[...].")
    return request.options.stops


def _stopped(request: Request, rows: np.ndarray, stops: Sequence[str]) -> list[tuple[list[int], bool]]:
    """Truncate rows after an end token or the token that completes a stop string; also return whether each is finished."""
    found, copies = [], len(rows) // len(request.before)
    for number, row in enumerate(request.cut(rows)):
        stop = stop_at(request.tokenizer, row, stops, request.before[number // copies])
        row = row if stop is None else row[:stop]
        found.append((row, stop is not None or row[-1] in request.options.ends))
    return found


def _new(request: Request, state: DecodeState) -> np.ndarray:
    """New tokens of the real rows, without those that pad the batch."""
    rows = request.count * request.options.num_return_sequences
    return np.asarray(state.tokens_RS)[:rows, request.slots : int(state.length)]


def _finish(request: Request, state: DecodeState, new: list[list[int]]) -> GenerateOutput:
    records, first = state.records, request.slots

    def of_new(x: Any) -> Any:
        return None if x is None else [row[first : first + len(n)] for row, n in zip(np.asarray(x), new)]  # noqa: B905

    return _output(
        request,
        new,
        request.options.pad,
        logprobs=of_new(records.logprob_RS),
        top_ids=of_new(records.best_RST),
        top_logprobs=of_new(records.best_logprob_RST),
    )


def _beams(request: Request, piece: int) -> Iterator[GenerateOutput | None]:
    options = request.options
    plan = beam_plan(options, request.lengths.max_new_tokens)
    settings = {**request.settings, **beam_settings(options, request.lengths.max_new_tokens)}
    if options.force_words_ids is not None:
        settings["words"] = constrained.words_table(options.force_words_ids)
        needed = beam.total_length(options.force_words_ids)
        if needed > request.lengths.max_new_tokens:
            raise UserError(
                f"force_words_ids has {needed} tokens, but max_new_tokens is {request.lengths.max_new_tokens}. Raise max_new_tokens."
            )
    engine, prompts = request.engine, request.prompts
    if piece:
        state = engine.program(beam.prefill, plan)(prompts, settings)
        yield None
        proceed = engine.program(beam.search_until, plan, donate=0)
        for until in range(1 + piece, request.lengths.max_new_tokens + piece, piece):
            state = proceed(state, settings, np.int32(until))
            if not state.going:
                break
            yield None
        found = engine.program(beam.ranked, plan)(state)
    else:
        found = engine.program(beam.search, plan)(prompts, settings)
    tokens_BKS, scores_BK, length_BK = jax.device_get(found)
    count, kept = request.count, options.num_return_sequences
    new = []
    for row in range(count):
        for number in range(kept):
            new.append(tokens_BKS[row, number, request.slots :][: length_BK[row, number]].tolist())
    scores = scores_BK[:count, :kept].reshape(-1)
    yield _output(request, new, int(settings["fill"]), sequences_scores=scores, logprobs=_logprobs(request, new))


def _logprobs(request: Request, new: list[list[int]]) -> list[np.ndarray] | None:
    """Compute log-probabilities of new tokens, if requested, by one more pass; for strategies that do not record them."""
    if not request.options.output_logprobs:
        return None
    copies = len(new) // len(request.rows)

    def repeat(rows: Any) -> list[Any]:
        return [row for row in rows for _ in range(copies)]

    sources = None if request.sources is None else repeat(request.sources)
    first = None if request.first is None else repeat(request.first)
    return scoring.score_rows(request.engine, repeat(request.rows), new, sources, first)


def _contrastive(request: Request, piece: int) -> Iterator[GenerateOutput | None]:
    options, vocab = request.options, request.engine.definition.arch.vocab_size
    request.require_steady_rotations("penalty_alpha", request.engine.definition.arch)
    plan = contrastive.ContrastivePlan(
        bucket_size(request.slots + request.lengths.max_new_tokens), min(options.top_k, vocab)
    )
    settings = {
        **request.settings,
        "max_new": np.int32(request.lengths.max_new_tokens),
        "penalty_alpha": np.float32(options.penalty_alpha),
    }
    stops = _stops(request)
    state = request.engine.program(contrastive.search, plan)(request.prompts, settings)
    new = [tokens for tokens, _ in _stopped(request, _new(request, state), stops)]
    yield _output(request, new, options.pad, logprobs=_logprobs(request, new))


def _speculative(request: Request, lm: Any, assistant: Any) -> GenerateOutput:
    options, draft = request.options, engine_of(assistant)
    if options.strategy != "tokens" or options.stops or options.top_logprobs:
        raise UserError(
            "assistant_model supports greedy decoding and sampling only: leave out num_beams, penalty_alpha, stop_strings and "
            "top_logprobs."
        )
    arch, draft_arch = lm.definition.arch, assistant.definition.arch
    if arch.vocab_size != draft_arch.vocab_size or arch.kind != draft_arch.kind:
        raise UserError(
            f"assistant_model is a {draft_arch.kind} with {draft_arch.vocab_size} tokens, the model a {arch.kind} with "
            f"{arch.vocab_size}: a draft model needs the same tokens and kind."
        )
    for one in (arch, draft_arch):
        request.require_steady_rotations("assistant_model", one)
    slots = bucket_size(request.slots + request.lengths.max_new_tokens + options.num_assistant_tokens + 1)
    if (
        draft_arch.positions == "learned"
        and longest(request.rows) + request.lengths.max_new_tokens > draft_arch.max_length
    ):
        raise UserError(f"assistant_model has positions for {draft_arch.max_length} tokens. Lower max_new_tokens.")
    plan = speculative.SpeculativePlan(
        slots,
        options.num_assistant_tokens,
        options.num_return_sequences,
        options.do_sample,
        assistant.definition,
    )
    settings = {**request.settings, "max_new": np.int32(request.lengths.max_new_tokens)}
    program = request.engine.program(speculative.search, plan)
    progress = program(request.prompts, settings, draft.params)
    rows = request.count * options.num_return_sequences
    tokens = np.asarray(progress.tokens_BS)[:rows, request.slots :]
    length = np.minimum(np.asarray(progress.length_B)[:rows] - request.slots, request.lengths.max_new_tokens)
    new = [row[:count].tolist() for row, count in zip(tokens, length, strict=True)]
    return _output(request, new, options.pad, rounds=int(progress.rounds), logprobs=_logprobs(request, new))


def stream(lm: Any, prompts: str | None = None, input_ids: Any = None, **arguments: Any) -> Iterator[str]:
    """Yield the text that `generate` returns for one prompt in pieces as they are generated; they join to exactly that text.

    Args:
      lm: the model.
      prompts: the prompt.
      input_ids: its token ids [1, L] instead.
      **arguments: as of `generate`.

    Raises:
      UserError: as `generate`; more than one sequence; beam search, whose text is not final before the end; no tokenizer.
    """
    names = ("attention_mask", "decoder_input_ids", "decoder_attention_mask", "global_attention_mask")
    inputs = {"input_ids": input_ids} | {name: arguments.pop(name, None) for name in names}
    request = Request(lm, arguments, inputs, prompts)
    options = request.options
    if request.count * options.num_return_sequences != 1 or options.strategy != "tokens":
        raise UserError(
            "stream generates one text, token by token: give one prompt, without num_return_sequences and num_beams."
        )
    if request.tokenizer is None:
        raise UserError("stream needs a tokenizer, which the model's directory lacks. Use generate with input_ids.")
    return pieces(request.tokenizer, _stream_tokens(request), request.before[0])


def _stream_tokens(request: Request) -> Iterator[int]:
    options, plan, stops, tokens = request.options, request.plan(), request.options.stops, []
    state = request.engine.prefill(plan, request.prompts, request.settings)
    for slot in range(request.slots, request.slots + request.lengths.max_new_tokens):
        if slot > request.slots:
            state = request.engine.decode_until(plan, state, request.settings, slot + 1)
        tokens.append(int(state.tokens_RS[0, slot]))
        yield tokens[-1]
        if tokens[-1] in options.ends or stop_at(request.tokenizer, tokens, stops, request.before[0]) is not None:
            return


def score(
    lm: Any,
    prompts: str | Sequence[str] | None = None,
    continuations: str | Sequence[Any] = (),
    input_ids: Any = None,
    attention_mask: Any = None,
) -> list[np.ndarray]:
    """Compute the log-probability [nats] of each token of given continuations, one per prompt.

    Args:
      lm: the model.
      prompts: texts to continue; the encoder's input for encoder-decoders.
      continuations: texts or lists of token ids. A text is appended to its prompt: include the space before a word.
      input_ids: token ids [B, L], in place of `prompts`.
      attention_mask: [B, L], 1 for real tokens of `input_ids`.

    Returns:
      Log-probabilities, an array per prompt.

    Raises:
      UserError: the numbers of prompts and continuations differ, one is empty, or there is no tokenizer for texts.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    request = Request(lm, {"max_new_tokens": 1}, inputs, prompts)
    texts: list[Any] = [continuations] if isinstance(continuations, str) else list(continuations)
    if any(isinstance(text, str) for text in texts):
        if lm.tokenizer is None:
            raise UserError("The model's directory has no tokenizer: give continuations as lists of token ids.")
        new_text = request.sources is not None  # a decoder's output begins a text; it does not continue one
        texts = (lm.tokenizer.encode_batch if new_text else lm.tokenizer.encode_after)(texts)
    if len(texts) != len(request.rows):
        raise UserError(f"There are {len(texts)} continuations for {len(request.rows)} prompts: give one for each.")
    return scoring.score_rows(request.engine, request.rows, texts, request.sources)
