"""The maximal update parametrization (Yang et al. 2022, arXiv:2203.03466, table 8, Adam).

The learning rate that is optimal at a small width is also optimal at a large one. With r = hidden_size / base width, and all inner widths
in proportion:

                                          initial deviation   learning rate   factor on its product
matrices between widths                   1 / sqrt(r)         1 / r           1
matrices from a width to a few classes    1 / r               1 / r           1
token table, as input                     1                   1               1
token table, as output                    1                   1               1 / r
positions, types, norms, biases           1                   1               1

Attention scores are divided by the width of a head instead of its root; a constant factor makes both equal at the base's head width. At
r = 1 nothing changes. Weight decay is part of the update, so it is scaled with the learning rate.
"""

from __future__ import annotations

from lm_research.config import ModelConfig
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture


def width_ratio(config: ModelConfig) -> float:
    """The ratio r; 1 without muP."""
    return config.hidden_size / config.mup_base_width if config.mup_base_width else 1.0


def parametrize(arch: Architecture, config: ModelConfig) -> Architecture:
    """Apply muP to an architecture, relative to `config.mup_base_width`, which must be set.

    Raises:
      ConfigError: the architecture has its own scales, an encoder besides the decoder, or projected embeddings.
    """
    if (
        arch.encoder is not None
        or arch.layers[0].attention_scale
        or arch.logit_scale != 1.0
        or arch.embedding_projection
    ):
        raise ConfigError(
            f"model.mup_base_width={config.mup_base_width} requires an encoder or a decoder whose scores are divided by the root of a head's "
            f"width, and whose embeddings have the width of the model, but model.family={config.family} is of another kind. Set "
            "--config.model.mup_base_width=0, or use another family."
        )
    ratio = width_ratio(config)
    scale = config.mup_base_head_size**0.5 / arch.head_width if config.mup_base_head_size else 0.0
    return arch.replace(mup_base_width=config.mup_base_width, logit_scale=1 / ratio).with_layers(attention_scale=scale)


def learning_rate_scale(path: str, ratio: float) -> float:
    """A parameter's factor on the learning rate, by its path "encoder/layers/attention/query/kernel"."""
    return 1 / ratio if path.endswith("/kernel") else 1.0
