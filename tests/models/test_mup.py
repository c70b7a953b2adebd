"""The maximal update parametrization: no change at the base's width, and activations that move equally at any other.

Legend: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import Config, ModelConfig, resolve
from lm_research.errors import ConfigError
from lm_research.models.families import define_model
from lm_research.objectives import build_objective
from lm_research.training.optimizer import make_optimizer
from lm_research.training.param_groups import make_groups
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state
from lm_research.training.step import make_train_step
from lm_research.trees import flatten

BASE, STEPS = 32, 4


def config(width: int, base: int, family: str = "gpt2", **model: object) -> Config:
    shape = dict(
        hidden_size=width, num_heads=width // 8, intermediate_size=4 * width, mup_base_width=base, init_std=0.1
    )
    optimizer = {"learning_rate": 1e-2, "weight_decay": 0.0, "clip_norm": 0.0}
    return tiny.config(family, model=shape | model, optimizer=optimizer, schedule={"name": "constant"})


def moves(settings: Config) -> tuple[float, float]:
    """Root mean squares: of the change of the final states, and of that of the logits, by a few steps on one batch."""
    definition = define_model(settings.model, tiny.VOCAB)
    objective = build_objective(settings, tiny.WordTokenizer(), definition.arch)
    optimizer = make_optimizer(settings.optimizer)
    tokens_BL = np.random.default_rng(0).integers(5, tiny.VOCAB, (8, 16)).astype(np.int32)
    batch = {
        "tokens_BL": tokens_BL,
        "segments_BL": np.ones_like(tokens_BL),
        "targets_BL": np.roll(tokens_BL, -1, 1),
        "positions_BL": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        "weights_BL": np.ones(tokens_BL.shape, np.float32),
    }

    @tiny.jit
    def look(params: dict) -> tuple[jax.Array, jax.Array]:
        model = definition.bind(params)
        x_BLD = model.decoder(tokens_BL)
        return x_BLD, model.predict_tokens(x_BLD).logits()

    state = tiny.jit(lambda: init_state(definition, optimizer, settings, objective))()
    step = tiny.jit(make_train_step(objective, definition, optimizer, make_schedule(settings), settings))
    before = look(state["params"])
    for _ in range(STEPS):
        state = step(state, {name: value[None] for name, value in batch.items()})
    return tuple(float(np.sqrt(np.mean((b - a) ** 2))) for a, b in zip(before, look(state["params"]), strict=True))


@pytest.mark.slow
def test_activations_move_equally_at_any_width() -> None:
    """The paper's coordinate check (appendix D.1): over 8 times the width the changes keep the same size; without muP they grow.

    For logits 0.81 at the base, 0.67, 0.57, 0.49 at twice, 4 and 8 times its width, and without muP 1.3, 2.0, 3.4.
    """
    narrow, wide = moves(config(BASE, BASE)), moves(config(8 * BASE, BASE))
    plain = moves(config(8 * BASE, 0))
    for small, large in zip(narrow, wide, strict=True):
        assert 0.5 < large / small < 1.2
    assert plain[1] / narrow[1] > 3.0


def test_at_the_bases_width_nothing_changes() -> None:
    ours, usual = (define_model(config(BASE, base).model, tiny.VOCAB) for base in (BASE, 0))
    assert dataclasses.replace(ours.arch, mup_base_width=0) == usual.arch
    for a, b in zip(*(jax.tree.leaves(tiny.jit(d.init)(0)) for d in (ours, usual)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not make_groups(config(BASE, BASE), ours.shapes).rates


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scales_match_the_table(family: str) -> None:
    """With r = 4, matrices deviate by a half and learn by a quarter; a readout deviates by a quarter; tables and biases are unchanged."""
    settings = config(64, 16, family)
    definition = define_model(settings.model, tiny.VOCAB)
    rates = make_groups(settings, definition.shapes).rates
    usual = flatten(tiny.jit(define_model(config(64, 0, family).model, tiny.VOCAB).init)(0))
    scaled = flatten(tiny.jit(definition.init)(0))
    for path, value in scaled.items():
        matrix, readout = path.endswith("/kernel"), path.startswith("next_sentence")
        np.testing.assert_allclose(
            value, usual[path] * (0.25 if readout and matrix else 0.5 if matrix else 1), rtol=1e-6
        )
        assert rates[path] == pytest.approx(0.25 if matrix else 1.0), path
    assert definition.arch.logit_scale == 0.25


def test_layer_decay_multiplies_the_scales() -> None:
    settings = resolve(
        {
            "model": {"family": "gpt2", "num_layers": 2, "hidden_size": 32, "num_heads": 2, "mup_base_width": 16},
            "optimizer": {"layer_decay": 0.1},
        }
    )
    rates = make_groups(settings, define_model(settings.model, 64).shapes).rates
    assert rates["decoder/layers/feed_forward/up/kernel"].reshape(-1) == pytest.approx([0.005, 0.05])
    assert rates["decoder/embeddings/tokens"] == pytest.approx(0.001)


def test_growing_heads_divide_their_scores_by_their_width() -> None:
    """Heads of 8 at the base, 32 here: sqrt(8) / 32, which at 8 would be 1 / sqrt(8)."""
    model = config(64, 16, num_heads=2, mup_base_head_size=8).model
    assert define_model(model, tiny.VOCAB).arch.layers[0].attention_scale == pytest.approx(8**0.5 / 32)


def test_unsupported_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer.name=sgd"):
        resolve({"model": {"mup_base_width": 64}, "optimizer": {"name": "sgd"}})
    with pytest.raises(ConfigError, match="trains two of different widths"):
        resolve({"model": {"mup_base_width": 64}, "objective": {"name": "replaced_token"}})
    for family in ("t5", "bart"):
        with pytest.raises(ConfigError, match=f"model.family={family} is of another kind"):
            define_model(ModelConfig(family=family, mup_base_width=64), 64)
