"""Frozen parameters and rates of layers against arithmetic, through the real step on a loss whose gradient is known."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Regression

from helpers import tiny
from lm_research.config import Config, resolve
from lm_research.errors import ConfigError
from lm_research.models.adapters import adapt
from lm_research.models.families import define_model
from lm_research.training.optimizer import make_optimizer
from lm_research.training.param_groups import make_groups
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state
from lm_research.training.step import make_train_step
from lm_research.trees import flatten, unflatten

LAYERS = 3
SHAPES = {
    "encoder/embeddings/tokens": (4, 2),
    "encoder/embeddings/norm/scale": (2,),
    "encoder/layers/attention/kernel": (LAYERS, 2),
    "encoder/layers/norm/bias": (LAYERS, 2),
    "pooler/kernel": (2,),
    "classifier/kernel": (2,),
}
DECAYED = [path for path in SHAPES if not path.endswith(("bias", "scale"))]


def draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


PARAMS, GRADIENT = draw(0), draw(1)


class Linear(Regression):
    """The loss is the sum of all parameters, each times its entry of GRADIENT."""

    metrics = {"sum": "tokens"}
    loss_terms = ("sum",)

    def normalizers(self, batch: dict) -> dict:
        return {"tokens": jnp.float32(1.0), "real": jnp.float32(1.0)}

    def metric_sums(self, model: dict, batch: dict, key: jax.Array | None) -> dict:
        return {"sum": sum((x * GRADIENT[path]).sum() for path, x in flatten(model).items())}


DEFINITION = types.SimpleNamespace(
    arch=types.SimpleNamespace(compute_dtype=jnp.float32),
    init=lambda seed: unflatten({path: jnp.asarray(x) for path, x in PARAMS.items()}),
    bind=lambda params: params,
    layers_of=lambda path: (0, 1, 2) if "/layers/" in path else None,
    shapes=jax.eval_shape(lambda: unflatten({path: jnp.asarray(x) for path, x in PARAMS.items()})),
)


def config(optimizer: dict[str, Any], freeze: str = "", decay: float = 1.0, **train: Any) -> Config:
    return resolve(
        {
            "optimizer": {"learning_rate": 0.5, "layer_decay": decay, **optimizer},
            "schedule": {"name": "constant"},
            "train": {"freeze": freeze, **train},
        }
    )


def after(config: Config, steps: int = 1) -> dict[str, Any]:
    """The state after some steps."""
    optimizer, objective = make_optimizer(config.optimizer), Linear()
    state = jax.device_get(init_state(DEFINITION, optimizer, config, objective))
    step = tiny.jit(make_train_step(objective, DEFINITION, optimizer, make_schedule(config), config))
    for _ in range(steps):
        state = step(state, {"tokens_BL": np.zeros((1, 1, 1), np.float32)})
    return jax.device_get(state)


def test_a_loaded_model_is_copied_and_no_random_one_is_made() -> None:
    """A step overwrites its state, so it must not be the loaded arrays themselves."""
    definition = types.SimpleNamespace(**vars(DEFINITION) | {"init": None})
    loaded, settings = DEFINITION.init(0), config({}, ema_decay=0.5)
    make = tiny.jit(
        lambda params: init_state(definition, make_optimizer(settings.optimizer), settings, Linear(), None, params)
    )
    state, given = make(loaded), flatten(loaded)
    for name in ("params", "ema"):
        for path, leaf in flatten(state[name]).items():
            assert (leaf == PARAMS[path]).all() and leaf.unsafe_buffer_pointer() != given[path].unsafe_buffer_pointer()
    assert not any(x.any() for x in jax.tree.leaves(state["optimizer"]))


SGD = {"name": "sgd", "beta1": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    """Half of it each layer: 1/2, 1/4 and 1/8 from the last to the first, 1/16 for embeddings. Weight decay is scaled likewise."""
    found = flatten(after(config(SGD | {"weight_decay": 0.1}, decay=0.5))["params"])
    shares = {path: 1.0 for path in SHAPES} | {path: 1 / 16 for path in SHAPES if "embeddings" in path}
    shares |= {path: np.array([[1 / 8], [1 / 4], [1 / 2]]) for path in SHAPES if "layers" in path}
    for path, before in PARAMS.items():
        direction = GRADIENT[path] + 0.1 * before * (path in DECAYED)
        np.testing.assert_allclose(found[path], before - 0.5 * shares[path] * direction, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_rates_of_real_models(family: str) -> None:
    """Each stack separately; what all layers of a stack share is below them, its final norm above."""
    model = {"family": family, "num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
    settings = resolve({"model": model, "optimizer": {"layer_decay": 0.1}})
    rates = make_groups(settings, define_model(settings.model, 64, "classification").shapes).rates
    for path, rate in rates.items():
        if "/layers/" in path:
            assert rate.reshape(-1) == pytest.approx([0.01, 0.1]), path
        else:
            below = "/embeddings/" in path or "/relative_bias" in path
            assert float(rate) == pytest.approx(0.001 if below else 1.0), path
    assert any("/layers/" in path for path in rates) and any("classifier" in path for path in rates)


def test_one_rate_for_all_changes_nothing() -> None:
    groups = make_groups(config(SGD), DEFINITION.shapes)
    assert not groups.rates and not groups.masks and not groups.frozen


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_what_is_frozen_has_no_state_no_gradient_and_no_decay(name: str) -> None:
    settings = config({"name": name, "weight_decay": 0.1, "clip_norm": 1e-3}, "embeddings, ^pooler/", ema_decay=0.5)
    state = after(settings, 2)
    found, average = flatten(state["params"]), flatten(state["ema"])
    still = {path for path in SHAPES if "embeddings" in path or "pooler" in path}
    for path, before in PARAMS.items():
        assert (found[path] == before).all() == (path in still), path
        if path in still:
            np.testing.assert_allclose(average[path], before, rtol=1e-6)
    moments = [flatten(tree) for key, tree in state["optimizer"].items() if key != "count"]
    assert moments and all(set(tree) == set(SHAPES) - still for tree in moments)
    norm = np.sqrt(sum(np.square(GRADIENT[path]).sum() for path in set(SHAPES) - still))
    assert float(state["window"]["grad_norm"]) / 2 == pytest.approx(norm, rel=1e-5)


def test_clipping_does_not_see_what_is_frozen() -> None:
    """All but one array frozen and a limit of half its gradient's norm: the update is half as long."""
    norm = float(np.linalg.norm(GRADIENT["classifier/kernel"]))
    state = after(config(SGD | {"clip_norm": norm / 2}, "encoder,pooler"))
    expected = PARAMS["classifier/kernel"] - 0.5 * GRADIENT["classifier/kernel"] / 2
    np.testing.assert_allclose(state["params"]["classifier"]["kernel"], expected, rtol=1e-5)


def test_some_layers_of_a_stack() -> None:
    """The first two, and the last one's norm with them: that array is frozen as a whole. The rest of layer 2 is trained."""
    pattern = r"layers/[01]/, layers/\d/norm"
    state = after(config({"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.0}, pattern), 3)
    kernel, moments = state["params"]["encoder"]["layers"]["attention"]["kernel"], state["optimizer"]["mu"]["encoder"]
    assert (kernel[:2] == PARAMS["encoder/layers/attention/kernel"][:2]).all()
    assert (kernel[2] != PARAMS["encoder/layers/attention/kernel"][2]).all()
    assert (state["params"]["encoder"]["layers"]["norm"]["bias"] == PARAMS["encoder/layers/norm/bias"]).all()
    assert set(moments["layers"]) == {"attention"} and not moments["layers"]["attention"]["kernel"][:2].any()
    norm = np.sqrt(
        sum(np.square(x).sum() for path, x in GRADIENT.items() if "layers" not in path)
        + np.square(GRADIENT["encoder/layers/attention/kernel"][2]).sum()
    )
    assert float(state["window"]["grad_norm"]) / 3 == pytest.approx(norm, rel=1e-5)


def test_the_log_counts_trained_parameters() -> None:
    """4 x 2 + 2 of embeddings, 2 x 6 of layers, 2 + 2 above: 26; the first of three layers takes 4, the embeddings 10."""
    shapes = DEFINITION.shapes
    assert make_groups(config(SGD), shapes).describe(shapes) == ""
    assert make_groups(config(SGD, "layers/0/"), shapes).describe(shapes) == "trains 22 of 26 parameters (84.62%)"
    assert (
        make_groups(config(SGD, "layers/0/,embeddings"), shapes).describe(shapes)
        == "trains 12 of 26 parameters (46.15%)"
    )


WRONG = {
    "(": r"'\(' is not a regular expression",
    "encoder/layer/": "'encoder/layer/' matches no parameter. The paths of parameters begin with classifier/kernel, encoder/embeddings, encoder/layers",
    "layers/3/": "'layers/3/' matches no parameter",  # the last is 2
    ".": "leaves no trainable parameter",
}


@pytest.mark.parametrize("freeze", WRONG)
def test_patterns_that_cannot_be_used(freeze: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[freeze]):
        make_groups(config(SGD, freeze), DEFINITION.shapes)


def adapted(freeze: str = "", full: str = "^classifier/", **lora: Any) -> tuple[Any, Config]:
    """A tiny encoder with adapters of rank 2, and a run of it."""
    settings = tiny.config(
        "bert", lora={"rank": 2, "modules_to_save": full, **lora}, train={"freeze": freeze, "ema_decay": 0.5}
    )
    return adapt(define_model(settings.model, 64, "classification"), settings.lora), settings


def test_adapters_and_the_new_head_are_trained() -> None:
    """Width 16, 2 layers: query and value of each have 2 x 2 x 16 numbers, the classifier 16 x 2 + 2."""
    definition, settings = adapted()
    groups, shapes = make_groups(settings, definition.shapes), flatten(definition.shapes)
    learning = set(flatten(groups.trainable(definition.shapes)))
    assert learning == {path for path in shapes if "lora_" in path or "classifier" in path}
    assert groups.count(definition.shapes) == 2 * 2 * (2 * 2 * 16) + 34 == 290
    assert groups.describe(definition.shapes).startswith(f"trains 290 of {definition.num_params:,} parameters (")
    state = jax.eval_shape(lambda: init_state(definition, make_optimizer(settings.optimizer), settings, Linear()))
    for name in ("mu", "nu"):  # the optimizer's memory shrinks to the trained parameters
        assert sum(x.size for x in jax.tree.leaves(state["optimizer"][name])) == 290
    assert set(flatten(state["params"])) == set(shapes)


def test_adapters_of_some_layers() -> None:
    """train.freeze takes the first layer's: half of 256 are left, and nothing else is trained."""
    definition, settings = adapted("layers/0/", full="")
    groups = make_groups(settings, definition.shapes)
    assert groups.count(definition.shapes) == 128
    assert all(mask.reshape(-1).tolist() == [0, 1] for mask in groups.masks.values()) and len(groups.masks) == 4
    with pytest.raises(ConfigError, match="config.lora.modules_to_save: 'clasifier' matches no parameter"):
        make_groups(adapted(full="clasifier")[1], definition.shapes)


def test_a_step_changes_only_adapters() -> None:
    """From B = 0 the first step changes B, and A from the second on; the base stays bit for bit, its average too."""
    definition, settings = adapted(dropout=0.5)

    class Squares(Linear):
        def metric_sums(self, model: Any, batch: dict, key: jax.Array | None) -> dict:
            kernel = model.encoder.layers.attention.query.kernel[...]
            return {"sum": jnp.square(kernel - 1.0).sum() + model.classifier.kernel[...].sum()}

    optimizer, objective = make_optimizer(settings.optimizer), Squares()
    params = tiny.random_params(definition)
    attention = params["encoder"]["layers"]["attention"]
    attention["query"]["lora_b"] = np.zeros_like(attention["query"]["lora_b"])
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, settings, objective))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state |= {"params": params, "ema": params, "halted": np.int32(-1)}
    step = tiny.jit(make_train_step(objective, definition, optimizer, make_schedule(settings), settings))
    for still in ({"query/lora_a"}, set()):
        state = jax.device_get(step(state, {"tokens_BL": np.zeros((1, 1, 1), np.float32)}))
        found, before = flatten(state["params"]), flatten(params)
        changed = {path for path in before if not np.array_equal(found[path], before[path])}
        # Weight decay changes what has no gradient: value's adapter, and A before it has one.
        expected = {path for path in before if "lora_" in path or path == "classifier/kernel"}
        assert changed == expected
        a = "encoder/layers/attention/query/lora_a"
        decayed = before[a] * (1 - 1e-4 * 0.01)
        assert np.allclose(found[a], decayed, rtol=1e-6, atol=0) == bool(still)
    assert {
        path for path in before if not np.allclose(flatten(state["ema"])[path], before[path], rtol=1e-6)
    } <= expected
