"""The maximal update parametrization (Yang et al. 2022, arXiv:2203.03466, table 8, Adam).

A learning rate found at a small width suits a large one.

With r = hidden_size / base width, all inner widths growing alike:

                                          initial deviation   learning rate   factor on its product
matrices between widths                   1 / sqrt(r)         1 / r           1
matrices from a width to a few classes    1 / r               1 / r           1
token table, as input                     1                   1               1
token table, as output                    1                   1               1 / r
positions, types, norms, biases           1                   1               1

Scores of attention are divided by the width of a head instead of its root, so that both agree at the base's width of a head. At r = 1
nothing changes. Weight decay is part of the update, and so falls with the rate.
"""

from __future__ import annotations

from lm_research.config import ModelConfig
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture


def width_ratio(config: ModelConfig) -> float:
    """r; 1 without the parametrization."""
    return config.hidden_size / config.mup_base_width if config.mup_base_width else 1.0


def parametrize(arch: Architecture, config: ModelConfig) -> Architecture:
    """The architecture with the scales of `config.mup_base_width`, which is set.

    Raises:
      ConfigError: it has scales of its own, a second stack, or embeddings of another width.
    """
    if (
        arch.encoder is not None
        or arch.layers[0].attention_scale
        or arch.logit_scale != 1.0
        or arch.embedding_projection
    ):
        raise ConfigError(
            f"model.mup_base_width={config.mup_base_width} is for encoders and decoders whose scores are divided by the root of a head's "
            f"width, and whose embeddings have the width of the model; model.family={config.family} is another kind. Set "
            "--config.model.mup_base_width=0, or use another family."
        )
    ratio = width_ratio(config)
    scale = config.mup_base_head_size**0.5 / arch.head_width if config.mup_base_head_size else 0.0
    return arch.replace(mup_base_width=config.mup_base_width, logit_scale=1 / ratio).with_layers(attention_scale=scale)


def rate_share(path: str, ratio: float) -> float:
    """A parameter's share of the learning rate, by its path "encoder/layers/attention/query/kernel"."""
    return 1 / ratio if path.endswith("/kernel") else 1.0
