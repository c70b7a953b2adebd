"""Embeddings of texts: the final states of their tokens, pooled.

Legend: B batch, L length, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm_research.decoding.request import read_texts
from lm_research.interop.sentence_transformers import Embedding
from lm_research.models import forward
from lm_research.models.definition import ModelDefinition, Params


def embed(
    lm: Any,
    run: Callable[[Mapping[str, np.ndarray], str, bool], jax.Array],
    texts: Sequence[str] | Sequence[Sequence[int]],
    pooling: str | None,
    normalize: bool | None,
    batch_size: int,
) -> np.ndarray:
    """Float32 [len(texts), D]; see LanguageModel.embed.

    Args:
      lm: a LanguageModel.
      run: (rows, pooling, normalize) -> vectors [B, D] of its.
      texts: or token ids of each, which are read as they are.

    Raises:
      UserError: no tokenizer, ids that are none of the model's, or a pooling that is not supported.
    """
    said = lm.embedding or Embedding()
    if pooling is not None:  # "first" is what cls was called before
        said = dataclasses.replace(said, pooling="cls" if pooling == "first" else pooling, further=())
    said.check()
    normalize = said.normalize if normalize is None else normalize
    arch, framed = lm.definition.arch, lm.embedding is not None
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of similar length pad each other least
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(texts), batch_size):
        chosen = order[start : start + batch_size]
        batch = read_texts(lm.tokenizer, arch, [texts[i] for i in chosen], said.max_length, framed)
        rows |= dict(zip(chosen, np.asarray(run(batch, said.pooling, normalize)), strict=False))
    return np.stack([rows[i] for i in range(len(texts))]) if texts else np.zeros((0, arch.hidden_size), np.float32)


def program(definition: ModelDefinition) -> Callable[[Params, Mapping[str, jax.Array], str, bool], jax.Array]:
    """(parameters, rows, pooling, normalize) -> vectors [B, D], jitted."""

    def run(params: Params, inputs: Mapping[str, jax.Array], pooling: str, normalize: bool) -> jax.Array:
        x_BLD = forward.final_states(definition.bind(params), inputs)
        x_BD = forward.pool(x_BLD, inputs["attention_mask"], pooling)
        return forward.to_length_1(x_BD) if normalize else x_BD

    return jax.jit(run, static_argnums=(2, 3))
