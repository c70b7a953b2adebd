"""Decoding inside another program gives what `generate` gives, and nothing for padding rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny, toys
from lm_research.decoding.generation_config import make_options
from lm_research.decoding.jit_generate import decode, plain_prompts

PROMPTS = [[1, 2, 3], [4], [5, 6]]
SLOTS, MOST, END = 4, 6, 0


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3, "length_penalty": 0.5}, {"no_repeat_ngram_size": 1}])
def test_it_equals_generate(arguments: dict[str, Any]) -> None:
    lm = toys.language_model()
    options = make_options(arguments, {}, {"eos_token_id": END, "pad_token_id": END})
    tokens_BP = np.zeros((len(PROMPTS) + 1, SLOTS), np.int32)
    start_B = np.full(len(tokens_BP), SLOTS - 1, np.int32)
    for row, prompt in enumerate(PROMPTS):
        start_B[row] = SLOTS - len(prompt)
        tokens_BP[row, start_B[row] :] = prompt

    def run(params: Any, tokens_BP: jax.Array, start_B: jax.Array) -> jax.Array:
        prompts = plain_prompts(tokens_BP, start_B, jnp.arange(len(tokens_BP)) < len(PROMPTS))
        return decode(lm.definition.bind(params), options, MOST, prompts, toys.VOCAB)

    found = np.asarray(tiny.jit(run)(lm.params, tokens_BP, start_B))
    assert found.shape == (len(PROMPTS) + 1, MOST)
    for row, prompt in enumerate(PROMPTS):
        said = lm.generate(
            input_ids=[prompt],
            max_new_tokens=MOST,
            eos_token_id=END,
            pad_token_id=END,
            return_dict_in_generate=True,
            **arguments,
        ).new_tokens[0]
        assert found[row, : len(said)].tolist() == said
    if options.strategy == "tokens":
        assert not found[-1].any()
