"""A model without biases, in a format that requires them, gives the same outputs when read back."""

from __future__ import annotations

import pathlib

import numpy as np

import lm_research
from lm_research.config import ModelConfig
from lm_research.interop import huggingface
from lm_research.models.families import define_model


def test_the_original_transformer_is_read_back_as_marian(tmp_path: pathlib.Path) -> None:
    shape = ModelConfig(
        family="transformer",
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        intermediate_size=32,
        max_length=16,
        init_std=0.3,
    )
    definition = define_model(shape, 32, "seq2seq_lm")
    params = definition.init(3)
    huggingface.save(tmp_path, definition, "transformer", params)
    lm = lm_research.from_pretrained(tmp_path)
    assert lm.num_params > definition.num_params and not lm.report.new
    inputs = {"input_ids": np.array([[4, 5, 6, 1]]), "decoder_input_ids": np.array([[0, 7, 8]])}
    direct = lm_research.pretrained.LanguageModel(definition, params, "transformer", lm.config.to_dict())
    # Marian adds 1e-5 to variances, the paper's code 1e-6.
    np.testing.assert_allclose(lm(**inputs)["logits"], direct(**inputs)["logits"], atol=1e-4)
