"""Replaced-token detection (Clark et al. 2020, ELECTRA): a small generator fills masks, and a discriminator detects replaced tokens.

Both are trained in one step: the generator on masked tokens; the discriminator, which is the model that is exported, on every
real position of the same rows with the generator's samples in place of the masks. No gradient passes through the samples. Both
share the embeddings, which are among the discriminator's parameters; all other parameters of the generator are under "generator".

Samples are drawn with Gumbel noise from a key that is part of each example. So they are a function of the run's seed,
the epoch, the example and the parameters, on any number of devices.

Legend: B batch, L length, M masked positions, E embedding width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research.config import Config, key
from lm_research.data.corpus import Corpus
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys, uniform_draw
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.heads import HeadSpec, Model, Projection
from lm_research.objectives.base import OBJECTIVES, Batch, Sums
from lm_research.objectives.cross_entropy import SLICE_ROWS, token_loss
from lm_research.objectives.masked_lm import MaskedPairs, MaskedTokenObjective, encode
from lm_research.objectives.masking import MaskingConfig, check_masking
from lm_research.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class ReplacedTokenConfig(MaskingConfig):
    """Settings of objective.name=replaced_token."""

    one_model: ClassVar[bool] = False

    generator_size: float = key(
        0.25, "Width and number of heads of the generator, as a fraction of the model's.", low=0.01, high=1.0
    )
    discriminator_weight: float = key(50.0, "Weight of the discriminator's loss.", low=0.0, high=1e6)


_UNSHARED = ("projection",)  # parts of the embeddings that depend on a model's width


def generator_architecture(arch: Architecture, size: float) -> Architecture:
    """Derive the generator from the discriminator: same depth and embeddings, `size` times the width, heads and feed-forward width.

    Raises:
      ConfigError: the generator's width is not divisible by its number of heads.
    """
    width, heads = round(arch.hidden_size * size), max(1, round(arch.num_heads * size))
    if not arch.head_size and width % heads:
        raise ConfigError(
            f"objective.generator_size={size} gives a generator of width {width} with {heads} heads, and the width is not divisible by that number. "
            f"Choose a fraction of model.hidden_size={arch.hidden_size} and model.num_heads={arch.num_heads} that divides evenly, "
            "such as 0.25."
        )
    embedding = arch.embedding_width
    return arch.replace(
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=0,
        intermediate_size=round(arch.intermediate_size * size),
        embedding_size=embedding,
        embedding_projection=arch.embedding_projection or embedding != width,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DefinitionWithGenerator(ModelDefinition):
    """A discriminator with a generator that shares its embeddings; the generator's parameters are under "generator".

    `bind` returns the discriminator, whose attribute `generator` is the generator.
    """

    generator: ModelDefinition

    @classmethod
    def make(cls, discriminator: ModelDefinition, generator: ModelDefinition) -> DefinitionWithGenerator:
        """Combine two definitions, dropping the embeddings of the generator that are shared."""
        fields = {field.name: getattr(discriminator, field.name) for field in dataclasses.fields(discriminator)}
        for name in ("shapes", "axes"):
            fields[name] = {**fields[name], "generator": _without_shared(getattr(generator, name))}
        return cls(**fields, generator=generator)

    @override
    def layers_of(self, path: str) -> tuple[int, ...] | None:
        if path.startswith("generator/"):
            return self.generator.layers_of(path.removeprefix("generator/"))
        return super().layers_of(path)

    @override
    def init(self, seed: int | jax.Array) -> Params:
        params = super().init(seed)
        generator_seed = jnp.uint32(seed) + jnp.uint32(2**31)  # seeds of runs are below 2**31, so no run has this one
        return {**params, "generator": _without_shared(self.generator.init(generator_seed))}

    @override
    def bind(self, params: Params) -> Model:
        generator = params["generator"]
        model: Any = super().bind({name: tree for name, tree in params.items() if name != "generator"})
        shared = {name: tree for name, tree in params["encoder"]["embeddings"].items() if name not in _UNSHARED}
        own = generator["encoder"].get("embeddings", {})
        encoder = {**generator["encoder"], "embeddings": {**shared, **own}}
        model.generator = self.generator.bind({**generator, "encoder": encoder})
        return model


def _without_shared(tree: dict[str, Any]) -> dict[str, Any]:
    own = {name: leaf for name, leaf in tree["encoder"]["embeddings"].items() if name in _UNSHARED}
    rest = {name: leaf for name, leaf in tree["encoder"].items() if name != "embeddings"}
    return {**tree, "encoder": {**rest, **({"embeddings": own} if own else {})}}


class MaskedRows(Examples):
    """Masked rows, each with a seed for the generator's samples."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str) -> None:
        self.rows = MaskedPairs(store, tokenizer, config, purpose, pairs="none")
        self.config, self.purpose = config, purpose
        self.num_examples, self.notes = self.rows.num_examples, self.rows.notes

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch as MaskedPairs does, without the label of pairs, and with noise [B] int32."""
        batch = self.rows.batch(epoch_B, index_B)
        del batch["next_sentence_B"], batch["row_weights_B"]
        keys_B = example_keys(self.config.seed, f"{self.purpose}/replaced", epoch_B, index_B)
        return batch | {"noise_B": (uniform_draw(keys_B) * 2**31).astype(np.int32)}


def sample_tokens(projection: Projection, noise_B: jax.Array, size: int) -> jax.Array:
    """Draw tokens [B, M] with ids below `size` from softmax(logits), with noise from each row's own key.

    Rows are processed a few at a time, so that the logits of a whole batch are never in memory together. On a mesh of several
    devices, each of which holds a part of the rows, all are processed at once.
    """
    hidden_BME, table_VE, bias_V = jax.lax.stop_gradient(projection[:3])
    table_VE, bias_V = table_VE[..., :size, :], None if bias_V is None else bias_V[:size]

    def draw(logits_MV: jax.Array, noise: jax.Array) -> jax.Array:
        return jnp.argmax(logits_MV + jax.random.gumbel(jax.random.key(noise), logits_MV.shape), axis=-1)

    def sample(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_ME, noise = row
        return draw(Projection(hidden_ME[None], table_VE, bias_V, projection.cap).logits()[0], noise)

    if jax.sharding.get_abstract_mesh().size > 1:
        return jax.vmap(draw)(Projection(hidden_BME, table_VE, bias_V, projection.cap).logits(), noise_B)
    return jax.lax.map(sample, (hidden_BME, noise_B), batch_size=max(1, SLICE_ROWS // hidden_BME.shape[1]))


@OBJECTIVES.register("replaced_token", ReplacedTokenConfig)
class ReplacedTokenDetection(MaskedTokenObjective):
    """Masked-token loss of the generator plus `discriminator_weight` times the replaced-token loss of the discriminator."""

    normalizer_names = ("tokens", "real")
    metrics = {
        "mlm_loss_nats": "tokens",
        "mlm_accuracy": "tokens",
        "weighted_rtd_loss_nats": "real",
        "rtd_loss_nats": "real",
        "rtd_accuracy": "real",
        "replaced_share": "real",
    }
    loss_terms = ("mlm_loss_nats", "weighted_rtd_loss_nats")

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "replaced_token"

    @classmethod
    @override
    def define(cls, config: Config, vocab_size: int, corpus: Corpus | None = None) -> ModelDefinition:
        discriminator = super().define(config, vocab_size)
        generator = generator_architecture(discriminator.arch, ReplacedTokenConfig.of(config.objective).generator_size)
        return DefinitionWithGenerator.make(discriminator, define(generator, HeadSpec("masked_lm")))

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        check_masking(ReplacedTokenConfig.of(config.objective))
        if config.train.init_from:
            raise ConfigError(
                "config.train.init_from provides one model, but objective.name=replaced_token trains two, the model and a generator. "
                "Leave init_from empty, or continue training with --config.objective.name=masked_lm."
            )
        generator_architecture(arch, ReplacedTokenConfig.of(config.objective).generator_size)

    @override
    def examples(self, store: TokenStore, purpose: str) -> MaskedRows:
        return MaskedRows(store, self.tokenizer, self.config, purpose)

    @override
    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": batch["weights_BM"].sum(), "real": (batch["segments_BL"] > 0).sum().astype(jnp.float32)}

    @override
    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        generator_key, key = (None, None) if key is None else jax.random.split(key)
        positions_BM, weights_BM = batch["mask_positions_BM"], batch["weights_BM"]
        x_BLD = encode(model.generator, batch, batch["tokens_BL"], generator_key)
        projection = model.generator.predict_tokens(x_BLD, positions_BM)
        mlm_loss, mlm_correct = token_loss(projection, batch["targets_BM"], weights_BM)

        samples_BM = sample_tokens(projection, batch["noise_B"], self.tokenizer.size).astype(jnp.int32)
        # Positions of weight 0 are moved past the row's end, where mode="drop" ignores them.
        length = batch["tokens_BL"].shape[1]
        rows_B1, places_BM = jnp.arange(len(positions_BM))[:, None], jnp.where(weights_BM > 0, positions_BM, length)
        tokens_BL = batch["tokens_BL"].at[rows_B1, places_BM].set(samples_BM, mode="drop")
        replaced_BM = (samples_BM != batch["targets_BM"]).astype(jnp.float32)
        labels_BL = jnp.zeros(tokens_BL.shape, jnp.float32).at[rows_B1, places_BM].set(replaced_BM, mode="drop")

        logits_BL = model.replaced_token(encode(model, batch, tokens_BL, key))
        real_BL = (batch["segments_BL"] > 0).astype(jnp.float32)
        rtd_loss = (real_BL * (jax.nn.softplus(logits_BL) - labels_BL * logits_BL)).sum()
        return {
            "mlm_loss_nats": mlm_loss,
            "mlm_accuracy": mlm_correct,
            "weighted_rtd_loss_nats": ReplacedTokenConfig.of(self.config.objective).discriminator_weight * rtd_loss,
            "rtd_loss_nats": rtd_loss,
            "rtd_accuracy": (real_BL * ((logits_BL > 0) == (labels_BL > 0))).sum(),
            "replaced_share": labels_BL.sum(),
        }
