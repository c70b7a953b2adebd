"""Decoding as a part of another compiled program, such as an evaluation step: prompts in, tokens out.

The caller compiles it, so it runs on whatever mesh and in as many processes as the program around it, and a row's text depends on
nothing but the row.

Legend: B prompts, P slots of prompts, T new tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding import beam, engine
from lm_research.decoding.generation_config import GenerationConfig, LengthLimits, make_rules
from lm_research.decoding.generation_request import beam_plan, beam_settings
from lm_research.decoding.prompts import Prompts
from lm_research.models.decode import BoundModel

# What of lm.generate's arguments can be asked for here: one text for a row, the same each time.
ARGUMENTS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "repetition_penalty",
    "min_new_tokens",
)


def decode(model: Any, options: GenerationConfig, most: int, prompts: Prompts[jax.Array], known: int) -> jax.Array:
    """New tokens of each row, int32 [B, T = most]. What follows a row's end token means nothing.

    Args:
      model: with its parameters.
      options: greedy or beams; lengths in them are not looked at, but for min_new_tokens.
      most: new tokens.
      prompts: traced arrays; `count` is bool [B], which rows are real.
      known: ids that there are tokens for; the model never says higher ones.
    """
    rows, width = prompts.tokens_BP.shape
    lengths = LengthLimits(options, width, width, 0)
    lengths.max_new_tokens = most
    settings = {
        "rules": make_rules(options, lengths, width, known if known < model.arch.vocab_size else 0),
        "filters": {},
        "ends_E": np.asarray(options.ends or [-1], np.int32),
        "pad": np.int32(options.pad),
        "seed_B": jnp.zeros(rows, jnp.uint32),
    }
    bound = BoundModel(model, None)
    if options.strategy == "beams":
        settings |= beam_settings(options, most)
        tokens_BKS, _, _ = beam.search(bound, beam_plan(options, most), prompts, settings)
        return tokens_BKS[:, 0, width : width + most]
    plan = engine.DecodeSpec(slots=width + most)
    state = engine.prefill(bound, plan, prompts, settings)
    state = engine.decode_until(bound, plan, state, settings, jnp.int32(width + most))
    return state.tokens_RS[:, width:]


def plain_prompts(
    tokens_BP: jax.Array, start_B: jax.Array, real_B: jax.Array, source_BM: Any = None, mask_BM: Any = None
) -> Prompts[jax.Array]:
    """Prompts of arrays; a row that is not real still sees one token of the encoder's."""
    names_B2 = jnp.zeros((len(tokens_BP), 2), jnp.uint32)  # of draws, and none are made
    if mask_BM is not None:
        mask_BM = mask_BM.at[:, 0].set(1)
    return Prompts(tokens_BP, start_B, names_B2, source_BM, mask_BM, real_B)
