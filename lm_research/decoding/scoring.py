"""How likely a model finds given continuations.

Legend: B rows, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding.engine import Engine, read
from lm_research.decoding.prompts import Prompts, as_rows, longest, make_prompts
from lm_research.errors import UserError
from lm_research.models import cache as cache_lib
from lm_research.models.cache import Bound


def score_rows(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
) -> list[np.ndarray]:
    """Log-probability [nats] of each token of each continuation after its prompt.

    Args:
      engine: the model.
      prompts: token ids (of an encoder-decoder: the decoder's).
      continuations: token ids, as many rows.
      sources: an encoder-decoder's encoder tokens.

    Raises:
      UserError: an empty row, or one that is longer than the model's positions.
    """
    prompts, continuations = as_rows("prompts", prompts), as_rows("continuations", continuations)
    rows = [[*prompt, *more] for prompt, more in zip(prompts, continuations, strict=True)]
    arch = engine.definition.arch
    if arch.positions == "learned" and longest(rows) > arch.max_length:
        raise UserError(
            f"A prompt with its continuation has {longest(rows)} tokens, but the model has positions for {arch.max_length}. "
            "Shorten it."
        )
    most = arch.encoder.max_length if arch.encoder is not None and arch.encoder.positions == "learned" else 0
    batch = make_prompts(rows, 0, sources, engine.rows_multiple, most=most)
    log_BL = np.asarray(engine.program(_said, None)(batch._replace(count=None)))
    return [log_BL[number, -len(more) :] for number, more in enumerate(continuations)]


def _said(bound: Bound, plan: Any, batch: Prompts) -> jax.Array:
    """Log-probability of each token given those before it [B, L]; the first slot's means nothing."""
    x_BLD, _ = read(bound, batch, batch.tokens_BP.shape[1])
    log_BLV = jax.nn.log_softmax(cache_lib.predict(bound, x_BLD[:, :-1]), axis=2)
    log_BL = jnp.take_along_axis(log_BLV, batch.tokens_BP[:, 1:, None], axis=2)[..., 0]
    return jnp.pad(log_BL, ((0, 0), (1, 0)))
