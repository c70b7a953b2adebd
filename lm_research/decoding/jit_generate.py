"""Decoding inside another compiled program, such as an evaluation step.

It runs on the mesh and in the processes of the surrounding program, and a row's text depends on that row only.

Legend: B prompts, P slots of prompts, T new tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding import beam, engine
from lm_research.decoding.generation_config import GenerationConfig
from lm_research.decoding.generation_request import beam_plan, beam_settings
from lm_research.decoding.generation_settings import LengthLimits, make_rules
from lm_research.decoding.prompts import Prompts
from lm_research.models.decode import BoundModel

# Arguments of lm.generate that are supported here: those of deterministic decoding with one text per row.
ARGUMENTS = (
    "num_beams length_penalty early_stopping num_beam_groups diversity_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size repetition_penalty min_new_tokens"
).split()


def decode(
    model: Any, options: GenerationConfig, max_new_tokens: int, prompts: Prompts[jax.Array], num_tokens: int
) -> jax.Array:
    """Generate new tokens for each row, int32 [B, T = max_new_tokens]; those after a row's end token are undefined.

    Args:
      model: the model with its parameters.
      options: greedy decoding or beam search; of its lengths only min_new_tokens is used.
      max_new_tokens: number of new tokens.
      prompts: traced arrays.
      num_tokens: size of the tokenizer; higher ids are never generated.
    """
    rows, width = prompts.tokens_BP.shape
    lengths = LengthLimits(options, width, width, 0)
    lengths.max_new_tokens = max_new_tokens
    settings = {
        "rules": make_rules(options, lengths, width, num_tokens if num_tokens < model.arch.vocab_size else 0),
        "filters": {},
        "ends_E": np.asarray(options.ends or [-1], np.int32),
        "pad": np.int32(options.pad),
        "seed_B": jnp.zeros(rows, jnp.uint32),
    }
    bound = BoundModel(model, None)
    if options.strategy == "beams":
        settings |= beam_settings(options, max_new_tokens)
        tokens_BKS, _, _ = beam.search(bound, beam_plan(options, max_new_tokens), prompts, settings)
        return tokens_BKS[:, 0, width : width + max_new_tokens]
    plan = engine.DecodeSpec(slots=width + max_new_tokens)
    state = engine.prefill(bound, plan, prompts, settings)
    state = engine.decode_until(bound, plan, state, settings, jnp.int32(width + max_new_tokens))
    return state.tokens_RS[:, width:]


def plain_prompts(
    tokens_BP: jax.Array, start_B: jax.Array, real_B: jax.Array, source_BM: Any = None, mask_BM: Any = None
) -> Prompts[jax.Array]:
    """Make prompts from traced arrays; rows that are not real still attend to one encoder token."""
    digests_B2 = jnp.zeros((len(tokens_BP), 2), jnp.uint32)  # only sampling uses them
    if mask_BM is not None:
        mask_BM = mask_BM.at[:, 0].set(1)
    return Prompts(tokens_BP, start_B, digests_B2, source_BM, mask_BM, real_B)
