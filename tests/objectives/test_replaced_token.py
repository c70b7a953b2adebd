"""ELECTRA's two models in one step (Clark et al. 2020): what is replaced, what is shared, and where gradients go.

Legend: B batch, L length, M masked positions.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from helpers import few, tiny
from lm_research.data.stateless_rng import example_keys, uniform
from lm_research.errors import ConfigError
from lm_research.models.definition import ModelDefinition
from lm_research.models.heads import Projection
from lm_research.objectives import build_objective, define
from lm_research.objectives.base import Objective
from lm_research.objectives.cross_entropy import SLICE_ROWS
from lm_research.objectives.replaced_token import ReplacedTokenDetection, generator_architecture, sample_tokens
from lm_research.training.step import loss_and_gradient


class Run:
    """A tiny run: its model with random parameters, its objective, and one batch."""

    def __init__(self, folder: pathlib.Path, **objective: Any) -> None:
        objective = dict(mask_rate=0.3, generator_size=0.5) | objective
        config = few.setting("replaced_token", model=dict(embedding_size=8, num_layers=1), objective=objective)
        self.definition: ModelDefinition = define(config, few.VOCAB)
        self.objective: Objective = build_objective(config, few.Words(), self.definition.arch)
        self.params = tiny.random_params(self.definition)
        store = tiny.store(folder, tiny.documents(seed=6, count=40, sentences=(1, 4)))
        self.examples = self.objective.examples(store, "train")
        self.batch = self.examples.batch(np.zeros(8, int), np.arange(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("store"))


def spy(run: Run, params: Any, batch: dict[str, np.ndarray]) -> tuple[dict, np.ndarray, np.ndarray]:
    """The sums; the tokens that the discriminator reads [B, L]; its logits [B, L]."""

    def forward(params: Any, batch: dict) -> tuple:
        model, seen = run.definition.bind(params), []
        encoder, head = model.encoder, model.replaced_token
        model.encoder = lambda tokens, *args, **named: (seen.append(tokens), encoder(tokens, *args, **named))[1]
        model.replaced_token = lambda x: (seen.append(head(x)), seen[-1])[1]
        return run.objective.metric_sums(model, batch, None), *seen

    return jax.tree.map(np.asarray, tiny.jit(forward)(params, batch))


def test_labels_are_1_exactly_where_a_sample_differs(run: Run) -> None:
    sums, tokens_BL, logits_BL = spy(run, run.params, run.batch)
    batch, original_BL = run.batch, run.batch["tokens_BL"].copy()
    row, place = np.nonzero(batch["weights_BM"])
    column = batch["mask_positions_BM"][row, place]
    original_BL[row, column] = batch["targets_BM"][row, place]
    masked_BL = np.zeros(original_BL.shape, bool)
    masked_BL[row, column] = True
    labels_BL, real_BL = tokens_BL != original_BL, batch["segments_BL"] > 0
    assert labels_BL.any() and not labels_BL[~masked_BL].any()  # only masked places change, and none past a row's end
    assert (tokens_BL[masked_BL] < few.VOCAB).all() and not (tokens_BL[~masked_BL] == few.MASK).any()
    assert sums["replaced_share"] == labels_BL.sum()
    assert sums["rtd_accuracy"] == ((logits_BL > 0) == labels_BL)[real_BL].sum()
    probabilities = 1 / (1 + np.exp(-logits_BL.astype(np.float64)))
    by_hand = -np.log(np.where(labels_BL, probabilities, 1 - probabilities))[real_BL].sum()
    assert sums["rtd_loss_nats"] == pytest.approx(by_hand, rel=1e-5)
    assert sums["weighted_rtd_loss_nats"] == pytest.approx(50 * by_hand, rel=1e-5)


def test_samples_follow_the_generators_distribution_and_their_own_noise() -> None:
    rows = 4000
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1, 1.0], np.float32))  # the last is past `size`
    projection = Projection(np.ones((rows, 2, 1), np.float32), logits[:, None], None)
    noise = np.arange(rows, dtype=np.int32)
    samples = np.asarray(tiny.jit(lambda p, n: sample_tokens(p, n, 4))(projection, noise))
    shares = np.bincount(samples.ravel(), minlength=4) / samples.size
    expected = np.array([0.5, 0.25, 0.15, 0.1])
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / samples.size)).all()
    order = np.random.default_rng(0).permutation(rows)
    again = np.asarray(tiny.jit(lambda p, n: sample_tokens(p, n, 4))(projection, noise[order]))
    np.testing.assert_array_equal(again, samples[order])


def gradient(run: Run, term: str) -> Any:
    def value(params: Any, batch: dict) -> jax.Array:
        return run.objective.metric_sums(run.definition.bind(params), batch, None)[term]

    return tiny.jit(jax.grad(value))(run.params, run.batch)


def test_the_two_losses_meet_in_the_embeddings_only(run: Run) -> None:
    def largest(tree):
        return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    of_generator, of_discriminator = gradient(run, "mlm_loss_nats"), gradient(run, "rtd_loss_nats")
    assert largest(of_discriminator["generator"]) == 0
    own = {name: tree for name, tree in of_generator.items() if name not in ("generator", "encoder")}
    own["layers"] = of_generator["encoder"]["layers"]
    own["projection"] = of_generator["encoder"]["embeddings"]["projection"]
    assert largest(own) == 0 and largest(of_generator["generator"]) > 0
    for gradients in (of_generator, of_discriminator):
        shared = gradients["encoder"]["embeddings"]
        for name in set(shared) - {"projection"}:
            assert largest(shared[name]) > 0, name
    assert largest(of_discriminator["replaced_token"]) > 0 and largest(of_discriminator["encoder"]["layers"]) > 0


def test_accumulated_micro_batches_give_the_same(run: Run) -> None:
    @tiny.jit
    def step(params: Any, batch: dict) -> tuple:
        return loss_and_gradient(run.objective, run.definition, params, batch, jax.random.key(0))

    whole, parts = (
        step(run.params, {name: value.reshape(count, -1, *value.shape[1:]) for name, value in run.batch.items()})
        for count in (1, 4)
    )
    assert float(whole[0]) == pytest.approx(float(parts[0]), rel=1e-5)
    assert float(whole[1]["replaced_share"]) == float(parts[1]["replaced_share"])  # the same samples
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), parts[3], whole[3])


def test_the_generator_is_smaller_with_the_same_embeddings() -> None:
    # Clark et al. 2020, table 6: small has width 256, 4 heads and 1,024; its generator a quarter of each.
    config = few.setting(
        "replaced_token",
        model=dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128),
    )
    definition = define(config, 30522)
    generator = generator_architecture(definition.arch, 0.25)
    assert (generator.hidden_size, generator.num_heads, generator.intermediate_size) == (64, 1, 256)
    assert (generator.num_layers, generator.embedding_width) == (12, 128)
    # Of the generator's own: a projection, 12 blocks of 4 (64^2 + 64) + 2 * 64 * 256 + 256 + 64 + 4 * 64, and a head
    # that projects back to width 128: 64 * 128 + 128, a norm of 2 * 128 and a bias for each token.
    block = 4 * (64 * 64 + 64) + 2 * 64 * 256 + 256 + 64 + 4 * 64
    own = (128 * 64 + 64) + 12 * block + (64 * 128 + 128) + 2 * 128 + 30522
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(definition.shapes["generator"])]
    assert sum(sizes) == own


def test_a_generator_that_cannot_be_divided_is_refused() -> None:
    config = few.setting("replaced_token", model=dict(hidden_size=18), objective=dict(generator_size=0.85))
    with pytest.raises(ConfigError, match="width 15 with 2 heads"):
        define(config, few.VOCAB)


@pytest.mark.parametrize("size", [0.25, 1.0])
def test_the_generators_architecture(size: float) -> None:
    """Without an embedding width of its own the model's is kept; a projection leads to another width; keys have as many heads as queries."""
    arch = tiny.model("bert", hidden_size=32, num_heads=4).arch.replace(num_kv_heads=2)
    generator = generator_architecture(arch, size)
    assert (generator.hidden_size, generator.num_heads, generator.embedding_width) == (32 * size, 4 * size, 32)
    assert (generator.num_kv_heads, generator.intermediate_size) == (0, 32 * size)
    assert generator.embedding_projection == (size < 1)
    assert generator_architecture(arch.replace(embedding_projection=True), size).embedding_projection


def test_narrow_generators_have_one_head_and_heads_of_a_given_width_need_not_divide_it() -> None:
    arch = tiny.model("bert", hidden_size=18).arch
    assert generator_architecture(arch, 0.2).num_heads == 1  # a fifth of 2
    assert generator_architecture(arch.replace(head_size=9), 0.85).hidden_size == 15


def test_the_generator_starts_from_a_seed_that_no_run_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the run and 2**31; the embeddings are the model's."""

    def init(self: ModelDefinition, seed: Any) -> dict[str, Any]:
        return {"encoder": {"embeddings": {"tokens": 0, "projection": 1}}, "seed": int(seed)}

    monkeypatch.setattr(ModelDefinition, "init", init)
    own = {"encoder": {"embeddings": {"projection": 1}}, "seed": 2**31 + 5}
    assert run.definition.init(5) == {**init(run.definition, 5), "generator": own}


def test_totals_by_hand(run: Run) -> None:
    batch = {"weights_BM": np.array([[1, 1, 0]]), "segments_BL": np.array([[1, 1, 0], [1, 2, 0]])}
    assert run.objective.normalizers(batch) == {"tokens": 2, "real": 4}


def test_a_run_cannot_start_from_one_model_or_with_an_impossible_generator() -> None:
    arch = tiny.model("bert", hidden_size=18).arch
    for keys, words in (
        (dict(train=dict(init_from="folder")), "train.init_from provides one model"),
        (dict(objective=dict(generator_size=0.85)), "width 15 with 2 heads"),
        (dict(objective=dict(keep_rate=0.9, random_rate=0.2)), "add up to more than 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            ReplacedTokenDetection.check(few.setting("replaced_token", **keys), arch)


def test_long_rows_are_sampled_one_by_one() -> None:
    """More masked positions than rows of logits that are computed together; the bias decides, and those past `size` do not count."""
    hidden = np.zeros((2, SLICE_ROWS + 1, 1), np.float32)
    projection = Projection(hidden, np.zeros((5, 1), np.float32), np.array([0, 0, 99, 0, 1e9], np.float32))
    assert (np.asarray(sample_tokens(projection, np.arange(2, dtype=np.int32), 4)) == 2).all()


def test_noise_of_rows_is_31_bits_of_a_draw(run: Run) -> None:
    draws = uniform(example_keys(0, "train/replaced", 0, np.arange(8)), 1)[:, 0]
    assert run.batch["noise_B"].tolist() == [int(draw * 2**31) for draw in draws]
