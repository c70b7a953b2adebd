"""Operations of training against arithmetic and against what the compiler counts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from helpers import few, tiny
from lm_research.config import ModelConfig, resolve
from lm_research.models.definition import define as define_architecture
from lm_research.models.families import define_model
from lm_research.models.flops import train_flops, train_flops_per_token
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import num_parameters
from lm_research.objectives import define


def test_flops_of_bert_base_by_hand() -> None:
    definition = define_model(ModelConfig(family="bert"), 30522)
    # A block: 4 x 768^2 in attention, 2 x 768 x 3072 around it: 7,077,888; twelve of them.
    assert train_flops(definition, 1, 0).layers == 6 * 12 * 7_077_888 == 6 * 84_934_656
    # 6 N for the products with weights, N with 20 / 128 of the vocabulary's 30,522 x 768; 12 x layers x D x L.
    expected = 6 * (84_934_656 + 30522 * 768 * 20 / 128) + 12 * 12 * 768 * 128
    assert train_flops_per_token(definition, 128, 20 / 128) == pytest.approx(expected)


def test_flops_agree_with_what_the_compiler_counts() -> None:
    shape = dict(hidden_size=128, intermediate_size=512, num_layers=1, scan_layers=False, vocab_size=512, max_length=64)
    definition = tiny.model("gpt2", **shape)

    def loss(params: Any) -> jax.Array:
        model = definition.bind(params)
        return model.predict_tokens(model.decoder(np.zeros((4, 64), np.int32))).logits().sum()

    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), definition.shapes)
    forward = tiny.jit(loss).lower(params).compile().cost_analysis()["flops"]
    # A backward pass costs twice the forward; elementwise work is not in the convention.
    assert 3 * forward / (4 * 64) == pytest.approx(train_flops_per_token(definition, 64), rel=0.05)


def test_an_encoder_decoder_counts_each_side_at_its_own_length() -> None:
    shape = dict(hidden_size=8, num_heads=2, intermediate_size=32, num_layers=1, vocab_size=100, max_length=32)
    definition = define_model(ModelConfig(family="transformer", **shape), 100)
    flops = train_flops(definition, length=6, predicted=6, source_length=10)
    square, both = 8 * 8, 2 * 8 * 32  # a projection of the attention; the two products of the feed-forward layer
    encoder = (4 * square + both) * 10
    decoder = (4 * square + both + 2 * square) * 6 + 2 * square * 10  # queries and outputs of 6, keys and values of 10
    assert flops.layers == 6 * (encoder + decoder)
    assert flops.attention == 12 * 8 * (10 * 10 + 6 * 6 + 6 * 10)
    assert flops.head == 6 * 100 * 8 * 6


def test_merged_attention_computes_keys_of_both_sides_with_one_projection() -> None:
    shape = dict(hidden_size=8, num_heads=2, intermediate_size=32, num_layers=1, vocab_size=100, max_length=32)
    arch = define_model(ModelConfig(family="transformer", **shape), 100).arch.replace(merged_attention=True)
    flops = train_flops(define_architecture(arch, HeadSpec("seq2seq_lm")), length=6, predicted=6, source_length=10)
    square, both = 8 * 8, 2 * 8 * 32  # a projection of the attention; the two products of the feed-forward layer
    encoder, decoder = (4 * square + both) * 10, (2 * square + both) * 6 + 2 * square * (6 + 10)
    assert flops.layers == 6 * (encoder + decoder)
    assert flops.attention == 12 * 8 * (10 * 10 + 6 * 6 + 6 * 10)
    # One table of 100 rows, and no projection for cross-attention: 4 of them in each block.
    assert num_parameters(arch) == 100 * 8 + 2 * (4 * square + both)


def test_a_generator_counts_in_addition_to_its_discriminator() -> None:
    """ELECTRA of width 64 with a generator of a quarter: 16 wide, fed from embeddings as wide as the discriminator's."""
    model = dict(family="electra", hidden_size=64, num_heads=4, intermediate_size=256, num_layers=1, vocab_size=100)
    sections = dict(
        model=model,
        objective=dict(name="replaced_token", generator_size=0.25),
        data=dict(max_length=16),
        tokenizer=dict(vocab_size=100),
    )
    config = resolve(sections)
    definition = define(config, 100)
    alone = define_model(config.model, 100)
    more = train_flops(definition, 16, 2).layers - train_flops(alone, 16, 2).layers
    assert more == 6 * (4 * 16 * 16 + 2 * 16 * 64) * 16


def test_a_position_uses_some_of_the_experts() -> None:
    """Two layers of width 16: four projections, a router of four, and of its experts' three matrices [16, 32] one of four."""
    plain = define_model(few.setting("causal_lm", "llama").model, few.VOCAB)
    definition = define_architecture(plain.arch.with_layers(num_experts=4, experts_per_token=1), plain.head)
    assert train_flops(definition, length=5, predicted=0).layers == 6 * 2 * (4 * 16 * 16 + 16 * 4 + 3 * 16 * 32) * 5
