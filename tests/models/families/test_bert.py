"""BERT against published parameter counts and against another implementation's numbers (goldens/make_goldens.py)."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.config import Config, ModelConfig
from lm_research.models.families import FAMILIES, define_model


def expected_count(d: int, n: int, f: int, vocabulary: int = 30522, positions: int = 512) -> int:
    """Devlin et al. 2018 counted by hand, with both pre-training heads."""
    embeddings = (vocabulary + positions + 2) * d + 2 * d
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    heads = (d * d + d) + (d * d + d + 2 * d + vocabulary) + (2 * d + 2)  # pooler, masked tokens (tied), next sentence
    return embeddings + n * block + heads


# Exact: parameters of transformers' BertForPreTraining at these sizes. Millions: as Turc et al. 2019, table 1, prints
# them (tiny to base); Devlin et al. 2018 give 110M and 340M.
@pytest.mark.parametrize(
    ("size", "exact", "millions"),
    [
        ("tiny", 4_433_468, 4.4),
        ("mini", 11_267_900, 11.3),
        ("small", 29_058_876, 29.1),
        ("medium", 41_668_412, 41.7),
        ("base", 110_106_428, 110.1),
        ("large", 336_226_108, 336.2),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(size: str, exact: int, millions: float) -> None:
    shape = FAMILIES["bert"].sizes[size]
    count = define_model(ModelConfig(family="bert", **shape), 30522).num_params
    assert count == exact == expected_count(shape["hidden_size"], shape["num_layers"], shape["intermediate_size"])
    assert round(count / 1e6, 1) == millions
    assert shape["hidden_size"] // shape["num_heads"] == 64


def our_params(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Hugging Face's weights in our tree: its Linear layers are [out, in], ours [in, out], with a separate axis of heads."""
    heads, layers = 3, 2

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def block(n: int) -> dict[str, Any]:
        at = f"bert.encoder.layer.{n}"
        attention = {name: dense(f"{at}.attention.self.{name}") for name in ("query", "key", "value")}
        width = attention["query"]["kernel"].shape[0]
        for part in attention.values():
            part["kernel"] = part["kernel"].reshape(width, heads, width // heads)
            part["bias"] = part["bias"].reshape(heads, width // heads)
        output = dense(f"{at}.attention.output.dense")
        attention["output"] = output | {"kernel": output["kernel"].reshape(heads, width // heads, width)}
        return {
            "attention": attention,
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "feed_forward": {"up": dense(f"{at}.intermediate.dense"), "down": dense(f"{at}.output.dense")},
            "feed_forward_norm": norm(f"{at}.output.LayerNorm"),
        }

    tables = {"tokens": "word", "positions": "position", "types": "token_type"}
    embeddings = {ours: weights[f"bert.embeddings.{theirs}_embeddings.weight"] for ours, theirs in tables.items()}
    transform = "cls.predictions.transform"
    return {
        "encoder": {
            "embeddings": embeddings | {"norm": norm("bert.embeddings.LayerNorm")},
            "layers": jax.tree.map(lambda *xs: np.stack(xs), *map(block, range(layers))),
        },
        "pooler": {"dense": dense("bert.pooler.dense")},
        "masked_lm": {
            "dense": dense(f"{transform}.dense"),
            "norm": norm(f"{transform}.LayerNorm"),
            "bias": weights["cls.predictions.bias"],
        },
        "next_sentence": dense("cls.seq_relationship"),
    }


def our_batches(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batches [steps, B, ...]: labels per position become places, targets and weights of three predictions a row."""
    order = np.argsort(inputs["labels"] < 0, axis=-1, kind="stable")[..., :3]
    labels = np.take_along_axis(inputs["labels"], order, -1)
    return {
        "tokens_BL": inputs["input_ids"].astype(np.int32),
        "segments_BL": inputs["attention_mask"].astype(np.int32),
        "types_BL": inputs["token_type_ids"].astype(np.int32),
        "mask_positions_BM": np.where(labels >= 0, order, 0).astype(np.int32),
        "targets_BM": np.maximum(labels, 0).astype(np.int32),
        "weights_BM": (labels >= 0).astype(np.float32),
        "next_sentence_B": inputs["next_sentence_label"].astype(np.int32),
        "row_weights_B": np.ones(inputs["next_sentence_label"].shape, np.float32),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, np.ndarray]]:
    return tiny.load_golden(pathlib.Path(__file__).parents[1] / "goldens" / "bert.npz")


def golden_config(**sections: Any) -> Config:
    model = dict(hidden_size=24, num_heads=3, intermediate_size=40, max_length=19, vocab_size=61)
    return tiny.config("bert", model=model, tokenizer=dict(vocab_size=64, path="given"), **sections)


def test_states_and_logits_match_the_goldens(golden: dict) -> None:
    definition = define_model(golden_config().model, 61)
    params = our_params(golden["weights"])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, definition.shapes)
    inputs = {name: value[0].astype(np.int32) for name, value in golden["inputs"].items()}

    @jax.jit
    def forward(params: Any) -> tuple[jax.Array, ...]:
        model = definition.bind(params)
        x_BLD = model.encoder(inputs["input_ids"], inputs["attention_mask"], types_BL=inputs["token_type_ids"])
        everywhere = jnp.broadcast_to(jnp.arange(x_BLD.shape[1]), x_BLD.shape[:2])
        return x_BLD, model.predict_tokens(x_BLD, everywhere).logits(), model.predict_next_sentence(x_BLD)

    hidden, logits, next_sentence = forward(params)
    real = inputs["attention_mask"] > 0  # the other implementation lets padding attend to text, which is never read
    np.testing.assert_allclose(hidden[real], golden["outputs"]["hidden"][real], atol=2e-5)
    np.testing.assert_allclose(logits[real], golden["outputs"]["logits"][real], atol=1e-4)
    np.testing.assert_allclose(next_sentence, golden["outputs"]["next_sentence_logits"], atol=1e-4)


def test_ten_training_steps_have_the_golden_losses(golden: dict) -> None:
    optimizer = dict(learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0, beta1=0.9, beta2=0.999, epsilon=1e-6)
    config = golden_config(optimizer=optimizer, schedule=dict(name="constant"))
    losses = tiny.training_losses(config, our_params(golden["weights"]), our_batches(golden["inputs"]))
    assert losses[0] == pytest.approx(float(golden["outputs"]["loss"]), rel=1e-6)
    # Leaving out the decay moves these losses by 1.4e-5, epsilon 1e-8 by 1.2e-5, no clipping by 5e-3.
    np.testing.assert_allclose(losses, golden["outputs"]["losses"], rtol=3e-6)
