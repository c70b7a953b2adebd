"""Sampling from a causal language model during training.

Every new token recomputes the whole prefix, in one compiled program of fixed shape without a cache: simple, exact, and fast
enough for a few samples.

Legend: B samples, L length, T candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.models.definition import ModelDefinition
from lm_research.parallel.batches import to_host
from lm_research.tokenizers.base import Tokenizer


class Sampler:
    """Continues prompts with sampled tokens up to a fixed length; compiled once."""

    def __init__(
        self, definition: ModelDefinition, tokenizer: Tokenizer, length: int, temperature: float = 0.8, top_k: int = 40
    ) -> None:
        """Sample from the `top_k` most likely tokens (Fan et al. 2018) by softmax(logits / temperature)."""
        self.tokenizer, self.length = tokenizer, length
        top_k = min(top_k, tokenizer.size)

        def sample(params: Any, tokens_BL: jax.Array, lengths_B: jax.Array, key: jax.Array) -> jax.Array:
            model = definition.bind(params)
            rows = jnp.arange(len(tokens_BL))

            def step(position: int, tokens_BL: jax.Array) -> jax.Array:
                x_BLD = model.decoder(tokens_BL)
                last_B1D = jax.lax.dynamic_slice_in_dim(x_BLD, position - 1, 1, axis=1)
                logits_BV = model.predict_tokens(last_B1D).logits()[:, 0, : tokenizer.size]
                best_BT, ids_BT = jax.lax.top_k(logits_BV, top_k)
                choice_B = jax.random.categorical(jax.random.fold_in(key, position), best_BT / temperature)
                prompt_B = tokens_BL[:, position]
                next_B = jnp.where(position < lengths_B, prompt_B, ids_BT[rows, choice_B])
                return tokens_BL.at[:, position].set(next_B)

            return jax.lax.fori_loop(1, tokens_BL.shape[1], step, tokens_BL)

        self._sample = jax.jit(sample)

    def __call__(self, params: Any, prompts: Sequence[str], seed: int) -> list[str]:
        """Decode the prompts with their continuations, each up to its end token or `length` tokens."""
        if not prompts:
            return []
        role = self.tokenizer
        tokens_BL = np.full((len(prompts), self.length), role.sep_id, np.int32)
        encoded = [ids[: self.length - 1] for ids in role.encode_batch(list(prompts))]
        for row, ids in zip(tokens_BL, encoded, strict=True):
            row[1 : 1 + len(ids)] = ids
        lengths_B = np.asarray([1 + len(ids) for ids in encoded], np.int32)
        done_BL = to_host(self._sample(params, tokens_BL, lengths_B, jax.random.key(seed)))
        texts = []
        for row, length in zip(done_BL, lengths_B, strict=True):
            ends = np.flatnonzero(row[length:] == role.sep_id)
            stop = int(length + ends[0]) if len(ends) else self.length
            texts.append(role.decode(row[1:stop].tolist()))
        return texts
