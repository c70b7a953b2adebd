"""Prefix language modeling (Liu et al. 2018; Raffel et al. 2019, section 3.2): a decoder with bidirectional attention over a prefix.

Rows are those of causal_lm.py. Each document in a row is split at a random position. The tokens before it are the prefix, which attends
to itself in both directions; each token after it is predicted from the prefix and the tokens between.

Legend: B batch, L length.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from typing_extensions import override

from lm_research.data.stateless_rng import example_keys, uniform
from lm_research.data.store import TokenStore
from lm_research.models.heads import Projection
from lm_research.objectives.base import OBJECTIVES, Batch, SmoothedConfig
from lm_research.objectives.causal_lm import CausalLanguageModel, PackedRows


class PrefixRows(PackedRows):
    """Rows of L tokens, their successors, and which tokens are in a prefix."""

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch as PackedRows does, with prefix [B, L] int32, and weights of 0 for targets inside a prefix.

        The length of a document's prefix is uniform from 1 to one less than its tokens in the row.

        Example: a document | a b c d with a prefix of 2 tokens has

            prefix   1 1 0 0 0
            weights  0 1 1 1 1
        """
        batch = super().batch(epoch_B, index_B)
        segments_BL = batch["segments_BL"]
        keys_B = example_keys(self.seed, f"{self.purpose}/prefix", epoch_B, index_B)
        highest = int(segments_BL.max())
        flat_BL = segments_BL + (np.arange(len(segments_BL)) * (highest + 1))[:, None]
        lengths_BG = np.bincount(flat_BL.ravel(), minlength=len(segments_BL) * (highest + 1)).reshape(-1, highest + 1)
        prefix_BG = 1 + (uniform(keys_B, highest + 1) * (lengths_BG - 1)).astype(np.int64)
        # Positions start at 0 even if the row begins inside a document.
        inside_BL = batch["positions_BL"] - np.take_along_axis(prefix_BG, segments_BL.astype(np.int64), 1)
        prefix_BL = (inside_BL < 0) & (segments_BL > 0)
        # The last position of the prefix predicts the first token after it. Earlier positions can attend to their targets.
        return batch | {
            "prefix_BL": prefix_BL.astype(np.int32),
            "weights_BL": batch["weights_BL"] * (inside_BL >= -1),
        }


@OBJECTIVES.register("prefix_lm", SmoothedConfig)
class PrefixLanguageModel(CausalLanguageModel):
    """Mean negative log-likelihood of the next token after the prefix."""

    @override
    def examples(self, store: TokenStore, purpose: str) -> PrefixRows:
        return PrefixRows(store, self.config.data.max_length, self.tokenizer.sep_id, self.config.seed, purpose)

    @override
    def projection(self, model: Any, batch: Batch, key: jax.Array | None) -> Projection:
        x_BLD = model.decoder(
            batch["tokens_BL"],
            batch["segments_BL"],
            batch["positions_BL"],
            dropout_key=key,
            prefix_BL=batch["prefix_BL"],
        )
        return model.predict_tokens(x_BLD)
