"""Replaced-token detection (Clark et al. 2020, ELECTRA): a small generator fills masks, and the model finds what it replaced.

Both are trained in one step: the generator on masked tokens, the discriminator, which is the model that is kept, on every
real position of the same rows with the generator's samples in the gaps. No gradient passes through the samples. They
share the embeddings, which lie with the discriminator; the generator's own parameters lie beside its parts.

Samples are drawn with Gumbel noise from a key that each example brings along, so they are a function of the run's seed,
the epoch and the example, and for the same parameters the same on any number of devices.

Legend: B batch, L length, M masked positions, E embedding width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.config import Config, key
from lm_research.data.corpus import Corpus
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import example_keys, uniform
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
    one_model: ClassVar[bool] = False

    generator_size: float = key(
        0.25, "Width and number of heads of the generator, as a fraction of the model's.", low=0.01, high=1.0
    )
    discriminator_weight: float = key(50.0, "Weight of the discriminator's loss.", low=0.0, high=1e6)


OWN = ("projection",)  # parts of the embeddings that depend on a stack's width and are not shared


def generator_architecture(arch: Architecture, size: float) -> Architecture:
    """The generator of a discriminator: its depth and embeddings, and `size` times its width, heads and feed-forward layer.

    Raises:
      ConfigError: the smaller width cannot be divided into the smaller number of heads.
    """
    width, heads = round(arch.hidden_size * size), max(1, round(arch.num_heads * size))
    if not arch.head_size and width % heads:
        raise ConfigError(
            f"objective.generator_size={size} gives a generator of width {width} with {heads} heads, which do not divide it. "
            f"Choose a share of model.hidden_size={arch.hidden_size} and model.num_heads={arch.num_heads} that comes out even, "
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
    """A discriminator whose parameters have a "generator" beside them that shares its embeddings.

    `bind` gives the discriminator; its attribute `generator` is the other model.
    """

    generator: ModelDefinition

    @classmethod
    def make(cls, discriminator: ModelDefinition, generator: ModelDefinition) -> DefinitionWithGenerator:
        fields = {field.name: getattr(discriminator, field.name) for field in dataclasses.fields(discriminator)}
        for name in ("shapes", "axes"):
            fields[name] = {**fields[name], "generator": _without_shared(getattr(generator, name))}
        return cls(**fields, generator=generator)

    def layers_of(self, path: str) -> tuple[int, ...] | None:
        other, found, rest = path.partition("generator/")
        return self.generator.layers_of(rest) if found and not other else super().layers_of(path)

    def init(self, seed: int | jax.Array) -> Params:
        params = super().init(seed)
        other = jnp.uint32(seed) + jnp.uint32(2**31)  # runs' seeds are smaller, so no run begins with this one
        return {**params, "generator": _without_shared(self.generator.init(other))}

    def bind(self, params: Params) -> Model:
        generator = params["generator"]
        model: Any = super().bind({name: tree for name, tree in params.items() if name != "generator"})
        shared = {name: tree for name, tree in params["encoder"]["embeddings"].items() if name not in OWN}
        own = generator["encoder"].get("embeddings", {})
        encoder = {**generator["encoder"], "embeddings": {**shared, **own}}
        model.generator = self.generator.bind({**generator, "encoder": encoder})
        return model


def _without_shared(tree: dict[str, Any]) -> dict[str, Any]:
    own = {name: leaf for name, leaf in tree["encoder"]["embeddings"].items() if name in OWN}
    rest = {name: leaf for name, leaf in tree["encoder"].items() if name != "embeddings"}
    return {**tree, "encoder": {**rest, **({"embeddings": own} if own else {})}}


class MaskedRows(Examples):
    """Masked rows, each with a number that its replacements are drawn from."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str) -> None:
        self.rows = MaskedPairs(store, tokenizer, config, purpose, pairs="none")
        self.config, self.purpose = config, purpose
        self.num_examples, self.notes = self.rows.num_examples, self.rows.notes

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """As MaskedPairs without the label of pairs; noise [B] int32."""
        batch = self.rows.batch(epoch_B, index_B)
        del batch["next_sentence_B"], batch["row_weights_B"]
        keys_B = example_keys(self.config.seed, f"{self.purpose}/replaced", epoch_B, np.maximum(index_B, 0))
        return batch | {"noise_B": (uniform(keys_B, 1)[:, 0] * 2**31).astype(np.int32)}


def sample_tokens(projection: Projection, noise_B: jax.Array, size: int) -> jax.Array:
    """Tokens [B, M] below `size` drawn from softmax(logits), with the noise of each row's own key.

    A few rows at a time, so that the logits of a batch never lie in memory together; on a mesh of several devices, which
    hold a part of the rows each, all at once.
    """
    hidden_BME, table_VE, bias_V = jax.lax.stop_gradient(projection[:3])
    table_VE, bias_V = table_VE[:size], None if bias_V is None else bias_V[:size]

    def sample(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_ME, noise = row
        logits_MV = Projection(hidden_ME[None], table_VE, bias_V, projection.cap).logits()[0]
        return jnp.argmax(logits_MV + jax.random.gumbel(jax.random.key(noise), logits_MV.shape), axis=-1)

    if jax.sharding.get_abstract_mesh().size > 1:
        return jax.vmap(sample)((hidden_BME, noise_B))
    return jax.lax.map(sample, (hidden_BME, noise_B), batch_size=max(1, SLICE_ROWS // hidden_BME.shape[1]))


@OBJECTIVES.register("replaced_token", ReplacedTokenConfig)
class ReplacedTokenDetection(MaskedTokenObjective):
    """Loss of the generator's masked tokens plus `discriminator_weight` times that of telling replaced tokens."""

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
    def head(cls, config: Config) -> str:
        return "replaced_token"

    @classmethod
    def define(cls, config: Config, vocab_size: int, corpus: Corpus | None = None) -> ModelDefinition:
        discriminator = super().define(config, vocab_size)
        generator = generator_architecture(discriminator.arch, ReplacedTokenConfig.of(config.objective).generator_size)
        return DefinitionWithGenerator.make(discriminator, define(generator, HeadSpec("masked_lm")))

    @classmethod
    def check(cls, config: Config, arch: Architecture) -> None:
        check_masking(ReplacedTokenConfig.of(config.objective))
        if config.train.init_from:
            raise ConfigError(
                "config.train.init_from starts from one model, but objective.name=replaced_token trains two, a generator beside "
                "it. Leave init_from empty, or train further with --config.objective.name=masked_lm."
            )
        generator_architecture(arch, ReplacedTokenConfig.of(config.objective).generator_size)

    def examples(self, store: TokenStore, purpose: str) -> MaskedRows:
        return MaskedRows(store, self.tokenizer, self.config, purpose)

    def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": batch["weights_BM"].sum(), "real": (batch["segments_BL"] > 0).sum().astype(jnp.float32)}

    def metric_sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        generator_key, key = (None, None) if key is None else jax.random.split(key)
        positions_BM, weights_BM = batch["mask_positions_BM"], batch["weights_BM"]
        x_BLD = encode(model.generator, batch, batch["tokens_BL"], generator_key)
        projection = model.generator.predict_tokens(x_BLD, positions_BM)
        mlm_loss, mlm_correct = token_loss(projection, batch["targets_BM"], weights_BM)

        samples_BM = sample_tokens(projection, batch["noise_B"], self.tokenizer.size).astype(jnp.int32)
        # Places of weight 0 lie past the row's end, where nothing is written.
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
