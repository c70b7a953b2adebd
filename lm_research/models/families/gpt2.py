"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied token table."""

from __future__ import annotations

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.heads import CausalLM

# Radford et al. 2019, table 2 (widths and depths); 64-wide heads as in the released models.
SIZES = {
    "small": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
    "medium": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
    "large": dict(num_layers=36, hidden_size=1280, num_heads=20, intermediate_size=5120),
    "xl": dict(num_layers=48, hidden_size=1600, num_heads=25, intermediate_size=6400),
}


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_length=config.max_length,
        num_types=0,
        causal=True,
        norm="pre",
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        dropout_rate=config.dropout_rate,
        attention_dropout_rate=config.attention_dropout_rate,
        init_std=config.init_std,
        init="normal",
        # Section 2.3: weights of residual layers are scaled by 1/sqrt(number of residual layers), two a block.
        residual_init_std=config.init_std / (2 * config.num_layers) ** 0.5,
        dtype=config.dtype,
        scan_layers=config.scan_layers,
        remat=config.remat,
    )


def define_model(config: ModelConfig, vocab_size: int) -> ModelDefinition:
    arch = architecture(config, vocab_size)
    return define(lambda rngs: CausalLM(arch, rngs), arch)
