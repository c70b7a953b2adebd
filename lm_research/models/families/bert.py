"""BERT (Devlin et al. 2018, arXiv:1810.04805): a post-norm encoder with token types, trained on masked tokens."""

from __future__ import annotations

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.heads import PretrainingEncoder

# Devlin et al. 2018, section 3 (base, large); Turc et al. 2019, arXiv:1908.08962, table 1 (the others).
SIZES = {
    "tiny": dict(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512),
    "mini": dict(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024),
    "small": dict(num_layers=4, hidden_size=512, num_heads=8, intermediate_size=2048),
    "medium": dict(num_layers=8, hidden_size=512, num_heads=8, intermediate_size=2048),
    "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
    "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
}


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_length=config.max_length,
        num_types=2,
        causal=False,
        norm="post",
        norm_epsilon=1e-12,
        activation="gelu",
        dropout_rate=config.dropout_rate,
        attention_dropout_rate=config.attention_dropout_rate,
        init_std=config.init_std,
        init="truncated_normal",
        residual_init_std=config.init_std,
        dtype=config.dtype,
        scan_layers=config.scan_layers,
        remat=config.remat,
    )


def define_model(config: ModelConfig, vocab_size: int) -> ModelDefinition:
    arch = architecture(config, vocab_size)
    return define(lambda rngs: PretrainingEncoder(arch, rngs), arch)
