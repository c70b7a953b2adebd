"""The effects of a run's model section in any family, and settings that other programs' files cannot express."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, PretrainedError
from lm_research.interop.huggingface import hf_config
from lm_research.models.families import FAMILIES, define_model

SHAPE = dict(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_length=16)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_norms_are_where_the_family_or_the_run_puts_them(family: str) -> None:
    usual = define_model(ModelConfig(family=family, **SHAPE), 64).arch
    if usual.layers[0].shared_norm:  # of both branches: there is no other place
        with pytest.raises(ConfigError, match="only parallel branches share a norm"):
            define_model(ModelConfig(family=family, norm_position="pre", **SHAPE), 64)
        return
    for norm in ("pre", "post"):
        arch = define_model(ModelConfig(family=family, norm_position=norm, **SHAPE), 64).arch
        assert all(stack.layers[0].residual == norm for stack in (arch, arch.encoder) if stack is not None)
        assert (arch == usual) == (norm == usual.layers[0].residual)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_pre_norm_leaves_the_residual_stream_unchanged(family: str) -> None:
    """Blocks whose branches add nothing pass their input on: unchanged with pre-norm, normalized repeatedly with post-norm."""
    outputs = {}
    for norm in ("pre", "post"):
        definition = define_model(ModelConfig(family=family, norm_position=norm, dropout_rate=0.0, **SHAPE), 64)
        params = tiny.random_params(definition)
        (stack,) = (name for name in ("encoder", "decoder") if name in params)
        layers = params[stack]["layers"]
        for branch, last in (("attention", "output"), ("feed_forward", "down")):
            layers[branch][last] = jax.tree.map(np.zeros_like, layers[branch][last])
        if norm == "pre":  # then the final norm is all that happens after the embeddings
            params[stack]["final_norm"] = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
        else:
            for name in ("attention_norm", "feed_forward_norm"):
                layers[name] = {"scale": np.full((2, 16), 2.0, np.float32), "bias": np.zeros((2, 16), np.float32)}
        model = definition.bind(params)
        outputs[norm] = getattr(model, stack)(np.arange(5, 13)[None])
    # Normalized once, and four times of which the last doubles.
    np.testing.assert_allclose(outputs["post"], 2 * outputs["pre"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(family="gpt2", norm_position="post"), "norm=post"),
        (dict(family="bert", norm_position="pre"), "norm=pre"),
        (dict(family="gpt2", mup_base_width=8), "logit_scale=0.5"),
        (dict(family="gpt2", mup_base_width=16, mup_base_head_size=4), "attention_scale=0.25"),
    ],
)
def test_what_the_hugging_face_format_cannot_express_is_not_written(changes: dict, words: str) -> None:
    definition = define_model(ModelConfig(**SHAPE, **changes), 64)
    with pytest.raises(PretrainedError, match=words):
        hf_config(definition, changes["family"])
    with pytest.raises(PretrainedError, match=words):  # nor when a run has stored what it could
        hf_config(definition, changes["family"], FAMILIES[changes["family"]].to_hf(definition.arch))
