"""Convolutions with weights from the text; their values are compared with transformers in tests/interop/test_goldens.py."""

from __future__ import annotations

import numpy as np

from helpers import tiny
from lm_research.models.architecture import from_flat
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import num_parameters

SIZES = dict(
    vocab_size=tiny.VOCAB, hidden_size=16, num_heads=2, head_size=4, intermediate_size=32, max_length=0, num_layers=2
)


def test_packed_documents_do_not_mix_and_matrices_are_counted() -> None:
    """A row of documents of 5 and 4 tokens gives the states of each alone; by hand, D = 16, H K = 8 and W = 3.

    A layer has queries, keys, values and convolved values of 16 x 8, an output of 16 x 16, a feed-forward layer of 2 x 16 x 32, filters of
    16 x 3 and 8 x 16, and weights of 8 x 2 x 3.
    """
    arch = from_flat(**SIZES, positions="none", span_conv_width=3)
    definition = define(arch, HeadSpec("none", pooled=False))
    encoder = definition.bind(tiny.random_params(definition, scale=0.5)).encoder
    tokens = np.random.default_rng(0).integers(5, tiny.VOCAB, (1, 9))
    packed = encoder(tokens, np.array([[1] * 5 + [2] * 4]))
    np.testing.assert_allclose(packed[:, :5], encoder(tokens[:, :5]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:], encoder(tokens[:, 5:]), atol=1e-5)
    layer = 4 * 16 * 8 + 16 * 16 + 2 * 16 * 32 + 16 * 3 + 8 * 16 + 8 * 2 * 3
    assert num_parameters(arch) == tiny.VOCAB * 16 + 2 * layer
