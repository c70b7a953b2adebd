"""GPT-2 against published parameter counts and against another implementation's numbers (goldens/make_goldens.py)."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import Config, ModelConfig
from lm_research.models.families import FAMILIES, define_model


def expected_count(d: int, n: int, vocabulary: int = 50257, positions: int = 1024) -> int:
    """Radford et al. 2019 counted by hand: tables, n blocks with F = 4 d, the last norm; the head is the token table."""
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    return (vocabulary + positions) * d + n * block + 2 * d


# Exact: parameters of transformers' GPT2LMHeadModel at these sizes, the released checkpoints'. The paper's table 2
# prints 117M, 345M, 762M and 1542M, which its authors' repository calls an error.
@pytest.mark.parametrize(
    ("size", "exact"),
    [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080), ("xl", 1_557_611_200)],
)
def test_sizes_have_the_published_numbers_of_parameters(size: str, exact: int) -> None:
    shape = FAMILIES["gpt2"].sizes[size]
    count = define_model(ModelConfig(family="gpt2", max_length=1024, **shape), 50257).num_params
    assert count == exact == expected_count(shape["hidden_size"], shape["num_layers"])
    assert shape["hidden_size"] // shape["num_heads"] == 64


def our_params(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Hugging Face's weights in our tree: its Conv1D layers are [in, out] as ours; query, key and value are in one."""
    heads, layers = 3, 2

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def block(n: int) -> dict[str, Any]:
        at = f"transformer.h.{n}"
        joint, output = dense(f"{at}.attn.c_attn"), dense(f"{at}.attn.c_proj")
        width = len(output["bias"])
        attention = {"output": output | {"kernel": output["kernel"].reshape(heads, width // heads, width)}}
        for third, name in enumerate(("query", "key", "value")):
            part = slice(third * width, (third + 1) * width)
            attention[name] = {
                "kernel": joint["kernel"][:, part].reshape(width, heads, width // heads),
                "bias": joint["bias"][part].reshape(heads, width // heads),
            }
        return {
            "attention": attention,
            "attention_norm": norm(f"{at}.ln_1"),
            "feed_forward": {"up": dense(f"{at}.mlp.c_fc"), "down": dense(f"{at}.mlp.c_proj")},
            "feed_forward_norm": norm(f"{at}.ln_2"),
        }

    tables = {"tokens": weights["transformer.wte.weight"], "positions": weights["transformer.wpe.weight"]}
    return {
        "decoder": {
            "embeddings": tables,
            "layers": jax.tree.map(lambda *xs: np.stack(xs), *map(block, range(layers))),
            "final_norm": norm("transformer.ln_f"),
        }
    }


def our_batches(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batches [steps, B, L]: the other side shifts labels inside its loss; ours come shifted."""
    shifted = np.concatenate([inputs["labels"][..., 1:], np.full_like(inputs["labels"][..., :1], -100)], -1)
    return {
        "tokens_BL": inputs["input_ids"].astype(np.int32),
        "segments_BL": inputs["attention_mask"].astype(np.int32),
        "positions_BL": np.broadcast_to(np.arange(shifted.shape[-1], dtype=np.int32), shifted.shape),
        "targets_BL": np.maximum(shifted, 0).astype(np.int32),
        "weights_BL": (shifted >= 0).astype(np.float32),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, np.ndarray]]:
    return tiny.load_golden(pathlib.Path(__file__).parents[1] / "goldens" / "gpt2.npz")


def golden_config(**sections: Any) -> Config:
    model = dict(hidden_size=24, num_heads=3, intermediate_size=40, max_length=19, vocab_size=61)
    return tiny.config("gpt2", model=model, tokenizer=dict(vocab_size=64, path="given"), **sections)


def test_states_and_logits_match_the_goldens(golden: dict) -> None:
    definition = define_model(golden_config().model, 61)
    params = our_params(golden["weights"])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, definition.shapes)
    tokens, mask = (golden["inputs"][name][0].astype(np.int32) for name in ("input_ids", "attention_mask"))

    @jax.jit
    def forward(params: Any) -> tuple[jax.Array, jax.Array]:
        model = definition.bind(params)
        x_BLD = model.decoder(tokens, mask)
        return x_BLD, model.predict_tokens(x_BLD).logits()

    hidden, logits = forward(params)
    real = mask > 0
    np.testing.assert_allclose(hidden[real], golden["outputs"]["hidden"][real], atol=2e-5)
    np.testing.assert_allclose(logits[real], golden["outputs"]["logits"][real], atol=1e-4)


def test_ten_training_steps_have_the_golden_losses(golden: dict) -> None:
    optimizer = dict(learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0, beta1=0.9, beta2=0.999, epsilon=1e-6)
    config = golden_config(optimizer=optimizer, schedule=dict(name="constant"))
    losses = tiny.training_losses(config, our_params(golden["weights"]), our_batches(golden["inputs"]))
    assert losses[0] == pytest.approx(float(golden["outputs"]["loss"]), rel=1e-6)
    np.testing.assert_allclose(losses, golden["outputs"]["losses"], rtol=3e-6)
