"""What the options of a call come to: limits on new tokens, and the settings of logits processors and of sampling's filters."""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_research.decoding.generation_config import GenerationConfig, Tokens, as_list
from lm_research.decoding.logits_processors import pack_words
from lm_research.errors import UserError

DEFAULT_NEW_TOKENS = 20  # if neither max_new_tokens nor max_length is set


class LengthLimits:
    """Limits on the number of new tokens.

    Attributes:
      max_new_tokens: most new tokens of each sequence.
      min_new_tokens: new tokens before an end token is allowed.
    """

    def __init__(self, options: GenerationConfig, width: int, longest: int, limit: int) -> None:
        """Compute the limits of a request.

        Args:
          options: options of the call.
          width: length of the prompts with padding (the decoder's, for encoder-decoders).
          longest: length of the longest prompt without padding.
          limit: number of positions of the model; 0 for no limit.

        Raises:
          UserError: no token can be added, or prompt and new tokens exceed the model's positions.
        """
        new = options.max_new_tokens
        if new is None and options.max_length is not None:
            new = options.max_length - width
            if new < 1:
                raise UserError(
                    f"max_length={options.max_length} counts the prompt, which has {width} tokens already. Raise it, or give "
                    "max_new_tokens."
                )
        if new is None:
            new = min(DEFAULT_NEW_TOKENS, limit - longest + 1) if limit else DEFAULT_NEW_TOKENS
        self.max_new_tokens: int = new
        if limit and longest + self.max_new_tokens - 1 > limit or self.max_new_tokens < 1:
            raise UserError(
                f"The prompt has {longest} tokens and max_new_tokens is {max(self.max_new_tokens, 1)}, but the model has positions for {limit}. "
                "Shorten the prompt or lower max_new_tokens."
            )
        self.min_new_tokens = options.min_new_tokens
        if self.min_new_tokens is None:
            self.min_new_tokens = max(0, (options.min_length or 0) - width)


def make_rules(options: GenerationConfig, lengths: LengthLimits, width: int, vocabulary: int) -> dict[str, Any]:
    """Make the settings of logits_processors.RULES. Ids from `vocabulary` on have no token; 0 means that all have one."""
    rules: dict[str, Any] = {"vocabulary": np.int32(vocabulary)} if vocabulary else {}
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        if getattr(options, name) != 1.0:
            rules[name] = np.float32(getattr(options, name))
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(options, name):
            rules[name] = np.float32(getattr(options, name))
    for name, key in (
        ("no_repeat_ngram", "no_repeat_ngram_size"),
        ("encoder_no_repeat_ngram", "encoder_no_repeat_ngram_size"),
    ):
        if getattr(options, key):
            rules[name] = np.int32(getattr(options, key))
    ends_E = np.asarray(options.ends, np.int32)
    bad = [list(word) for word in options.bad_words_ids or () if list(word) not in [[end] for end in options.ends]]
    if bad:
        rules["bad_words"] = pack_words(bad)
    if options.biases:
        sequences, biases = zip(*options.biases, strict=True)
        words_WT, bias_W = pack_words(sequences), np.asarray(biases, np.float32)
        rules["sequence_bias"] = {"words_WT": words_WT, "bias_W": np.pad(bias_W, (0, len(words_WT) - len(bias_W)))}
    if lengths.min_new_tokens and len(ends_E):
        rules["min_new_tokens"] = {"count": np.int32(lengths.min_new_tokens), "ends_E": ends_E}
    if options.forced_bos_token_id is not None and width == 1:
        rules["forced_bos"] = _forced(options.forced_bos_token_id, 0)
    if options.forced_eos_token_id is not None:
        rules["forced_eos"] = _forced(options.forced_eos_token_id, lengths.max_new_tokens - 1)
    if options.exponential_decay_length_penalty and len(ends_E):
        start, factor = options.exponential_decay_length_penalty
        rules["length_decay"] = {"start": np.int32(start), "factor": np.float32(factor), "ends_E": ends_E}
    if options.suppress_tokens:
        rules["suppress_tokens"] = np.asarray(options.suppress_tokens, np.int32)
    if options.begin_suppress_tokens:
        at = int(width == 1 and options.forced_bos_token_id is not None)
        tokens_T = np.asarray(options.begin_suppress_tokens, np.int32)
        rules["begin_suppress_tokens"] = {"tokens_T": tokens_T, "at": np.int32(at)}
    if options.renormalize_logits and options.strategy == "beams":  # sampling normalizes anyway
        rules["renormalize"] = {}
    return rules


def _forced(tokens: Tokens, at: int) -> dict[str, Any]:
    return {"tokens_T": np.asarray(as_list(tokens), np.int32), "at": np.int32(at)}


def make_filters(options: GenerationConfig) -> dict[str, Any]:
    """Make the settings of sampling.FILTERS."""
    if not options.do_sample:
        return {}
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0}
    chosen = {name: getattr(options, name) for name in neutral if getattr(options, name) != neutral[name]}
    return {name: np.int32(value) if name == "top_k" else np.float32(value) for name, value in chosen.items()}
