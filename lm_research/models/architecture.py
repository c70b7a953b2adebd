"""What a model is, in numbers: everything the modules need to build themselves.

Families (models/families/) translate a run's `ModelConfig` into one of these; the modules know no family's name.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape and choices of one Transformer.

    Attributes:
      vocab_size: V, rows of the token table.
      hidden_size: D, width of the residual stream.
      num_layers: N blocks.
      num_heads: H heads of width K = D / H.
      intermediate_size: F.
      max_length: rows of the learned position table.
      num_types: rows of the token-type table; 0 has none.
      causal: whether a position sees only itself and earlier ones.
      norm: "post" normalises after each residual sum (Vaswani et al. 2017), "pre" before each branch (Radford et al. 2019).
      norm_epsilon: added to the variance.
      activation: "gelu" exact, "gelu_tanh" its tanh approximation (Hendrycks & Gimpel 2016).
      dropout_rate: on embeddings and residual branches.
      attention_dropout_rate: on attention probabilities.
      init_std: standard deviation of initial weights.
      init: "truncated_normal" (cut at two deviations, as BERT) or "normal" (as GPT-2).
      residual_init_std: the same for the matrices that write to the residual stream.
      dtype: compute type of matrix products and activations; parameters are float32.
      scan_layers: loop over stacked blocks, or unroll them, in the compiled program.
      remat: what the backward pass recomputes ("none", "dots", "full").
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_length: int
    num_types: int
    causal: bool
    norm: Literal["pre", "post"]
    norm_epsilon: float
    activation: Literal["gelu", "gelu_tanh"]
    dropout_rate: float
    attention_dropout_rate: float
    init_std: float
    init: Literal["truncated_normal", "normal"]
    residual_init_std: float
    dtype: str
    scan_layers: bool
    remat: Literal["none", "dots", "full"]

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)
