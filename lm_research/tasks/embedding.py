"""Text embedding: vectors that are close for texts that belong together, for search and similarity.

Both texts of a pair go through the same encoder, and a text's vector is pooled from its final states (Reimers and Gurevych 2019).
Contrastive training classifies each pair's second text among those of all pairs of the batch (van den Oord et al. 2018;
Henderson et al. 2017) and the records' hard negatives, if there are any. Graded similarities are learned with the squared error of the
cosine.

The candidates are the texts of all devices. The batch cannot be divided into micro-batches, because each row's loss depends on the
other rows.

Legend: B batch (records), C texts of a record, D width, L length, N records of a part.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.common.paths import as_path
from lm_research.config import Config, TaskConfig, key
from lm_research.data.store import TokenStore
from lm_research.decoding.embed import similarity_pairwise
from lm_research.errors import ConfigError, DataError, UserError
from lm_research.interop import sentence_transformers
from lm_research.interop.model_directories import inspect
from lm_research.models import text_embedding
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, define
from lm_research.models.families import define_model
from lm_research.models.forward import l2_normalize, pool
from lm_research.models.heads import HeadSpec
from lm_research.objectives.base import Batch, Outputs, Sums
from lm_research.tasks.base import TASKS, LabelObjective, LabelTask, PairConfig, concat_outputs
from lm_research.tasks.dataset import LabeledCorpus, Reader, Row, encode_texts
from lm_research.tasks.multiple_choice import ChoiceExamples
from lm_research.tasks.records import Record
from lm_research.tasks.similarity import contrastive_loss, ranks
from lm_research.tokenizers.base import Tokenizer

_TOLERANCE = 1e-6  # by which rounding may move a cosine out of [-1, 1]


def init_embedding(path: str | None) -> text_embedding.EmbeddingConfig:
    """Read the embedding settings of the model directory that a run starts from; the defaults without one.

    Raises:
      ConfigError: it has modules after the pooling, which cannot be trained.
    """
    if not path:
        return text_embedding.EmbeddingConfig()
    settings = sentence_transformers.load(inspect(as_path(path)).files) or text_embedding.EmbeddingConfig()
    if settings.further or settings.dense:
        raise ConfigError(
            f"{path} has a {(*settings.further, 'Dense')[0]} module after the pooling (modules.json), which this task can neither train "
            "nor evaluate. Delete that file to start from the model only."
        )
    return settings


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig(PairConfig):
    """Settings of embedding."""

    not_reading = TaskConfig.not_reading | {"pooling", "similarity", "normalize", "temperature", "symmetric"}

    problem_type: str = key(
        "contrastive",
        "contrastive: the two texts of a pair match, and label_key is not read; regression: label_key is their "
        "similarity.",
        choices=("contrastive", "regression"),
    )
    negative_key: str | None = key(
        None,
        "Field of a hard negative, a text that does not match the first; None uses only the other texts of the batch.",
    )
    pooling: str | None = key(
        None,
        "How to pool hidden states into a vector: mean, cls (the first), last, max, mean_sqrt_len or "
        "weightedmean, or several concatenated (cls+mean). None uses the model directory's setting, or else last "
        "for causal models and mean for others.",
    )
    prompt: str = key("", "Text to prepend to each text; empty uses the default prompt of the model directory, if any.")
    similarity: str | None = key(
        None,
        "Similarity function for scores; None uses the model directory's setting, or else cosine (dot without "
        "task.normalize).",
        choices=("cosine", "dot", "euclidean", "manhattan"),
    )
    normalize: bool = key(True, "Scale vectors to unit length, so that dot products are cosines.")
    temperature: float = key(0.05, "Temperature that divides the similarities before the softmax.", low=1e-4, high=1e4)
    symmetric: bool = key(
        False, "Also match each second text to its first one; the loss is the mean of both directions."
    )
    value_zero: float = key(0.0, "regression: label value that corresponds to a cosine of 0.")
    value_one: float = key(
        1.0, "regression: label value that corresponds to a cosine of 1; others are interpolated linearly."
    )


class EmbeddingReader(Reader):
    """Reads task.text_key, pair_key and, if they are set, negative_key, or label_key as a value."""

    def __init__(self, config: Config) -> None:
        self.config, self.task = config, EmbeddingConfig.of(config.task)
        self.unnamed_labels = "values" if self.task.problem_type == "regression" else "none"
        if not self.task.pair_key:
            raise ConfigError(
                "config.task.name=embedding reads pairs: name the second text's field in --config.task.pair_key."
            )
        task = self.task
        given = {"text_key": task.text_key, "pair_key": task.pair_key, "negative_key": task.negative_key}
        self.keys = {setting: key for setting, key in given.items() if key}

    @override
    def texts(self, record: Record) -> list[str]:
        texts = [record.text(field, setting) for setting, field in self.keys.items()]
        for (setting, field), text in zip(self.keys.items(), texts, strict=True):
            if not text.strip():
                raise DataError(
                    f"{record.where}: field {field!r} is empty, and an empty text has no meaning to learn. Leave "
                    f"the record out, or name another field in --config.task.{setting}."
                )
        return texts

    @override
    def encode(self, records: Sequence[Record], names: Sequence[str], tokenizer: Tokenizer) -> Iterator[Row]:
        texts = [self.texts(record) for record in records]
        flat = [self.task.prompt + text for several in texts for text in several]
        encoded = encode_texts(tokenizer, flat, None, self.config.data.max_length)
        for record, several in zip(records, texts, strict=True):
            label = self._cosine(record) if self.task.problem_type == "regression" else 0
            for number in range(len(several)):
                yield Row(*next(encoded), label, number == 0)

    def _cosine(self, record: Record) -> float:
        """Map the record's value to a cosine."""
        task, value = self.task, record.get(self.task.label_key, "label_key")
        try:
            cosine = (float(value) - task.value_zero) / (task.value_one - task.value_zero)
        except (TypeError, ValueError, ArithmeticError):
            cosine = math.nan
        if not abs(cosine) <= 1 + _TOLERANCE:
            raise DataError(
                f"{record.where}: field {task.label_key!r} is {value!r:.80}, which is not a number that maps to a cosine from -1 to 1, "
                f"where {task.value_zero:g} is 0 and {task.value_one:g} is 1 (config.task.value_zero and value_one). Fix it, or "
                "change those."
            )
        return cosine


class TextExamples(ChoiceExamples):
    """Records as C rows each, with ids that are equal for equal texts."""

    def __init__(self, store: TokenStore, arrays: dict[str, np.ndarray], *rest: Any) -> None:
        super().__init__(store, arrays, *rest)
        tokens = np.asarray(store.tokens)
        ids: dict[bytes, int] = {}
        ends = zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        self.text_ids = np.array([ids.setdefault(tokens[a:b].tobytes(), len(ids)) for a, b in ends], np.int32)

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray, width: int | None = None) -> dict[str, np.ndarray]:
        """Make a batch: tokens, types, segments [B, C, L] int32; texts [B, C], -1 in empty rows; labels_B, row_weights_B."""
        batch, rows_BC = super().batch(epoch_B, index_B, width), self.rows_of(index_B)
        batch["texts_BC"] = np.where(rows_BC >= 0, self.text_ids[rows_BC], np.int32(-1))
        del batch["choices_BC"]
        return batch


def embedding_settings(config: Config, arch: Architecture) -> text_embedding.EmbeddingConfig:
    """Resolve how a text's states become its vector."""
    task = EmbeddingConfig.of(config.task)
    pooling = task.pooling or ("last" if arch.causal else "mean")
    return text_embedding.EmbeddingConfig(pooling, task.normalize, config.data.max_length)


class EmbeddingObjective(LabelObjective):
    """Mean loss over records.

    Attributes:
      graded: whether records have a value, the cosine of their two texts, instead of two texts that belong together.
      skipped: number of tokens at the start of rows that are not pooled.
    """

    def __init__(self, config: Config, skipped: int) -> None:
        self.config, self.skipped, self.settings = config, skipped, EmbeddingConfig.of(config.task)
        self.graded = self.settings.problem_type == "regression"
        names = ("squared_error",) if self.graded else ("contrastive_loss_nats", "in_batch_accuracy")
        self.metrics, self.loss_terms = dict.fromkeys(names, "rows"), names[:1]

    def logits(self, model: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Compute the vectors [B, C, D]."""
        shape, arch = batch["tokens_BL"].shape, model.arch
        rows = {name: batch[name].reshape(-1, shape[-1]) for name in ("tokens_BL", "types_BL", "segments_BL")}
        stack = model.decoder if arch.causal else model.encoder
        types_BL = rows["types_BL"] if arch.num_types > 1 else None
        x_BLD = stack(rows["tokens_BL"], rows["segments_BL"], types_BL=types_BL, dropout_key=key)
        vectors_BD = pool(x_BLD, rows["segments_BL"], embedding_settings(self.config, arch).pooling, self.skipped)
        vectors_BD = l2_normalize(vectors_BD) if self.settings.normalize else vectors_BD
        return vectors_BD.reshape(*shape[:2], -1)

    @override
    def logit_sums(self, logits: jax.Array, batch: Batch) -> Sums:
        weights_B = batch["row_weights_B"]
        if self.graded:
            errors_B = (logits[:, 0] * logits[:, 1]).sum(-1) - batch["labels_B"]
            return {"squared_error": (weights_B * jnp.square(errors_B)).sum()}
        temperature, symmetric = self.settings.temperature, self.settings.symmetric
        losses_B, right_B = contrastive_loss(logits, batch["texts_BC"], temperature, symmetric)
        return {
            "contrastive_loss_nats": (weights_B * losses_B).sum(),
            "in_batch_accuracy": (weights_B * right_B).sum(),
        }


@TASKS.register("embedding", EmbeddingConfig)
class Embedding(LabelTask):
    """Vectors of texts, which are close where the texts belong together."""

    kinds = ("encoder", "decoder")
    examples_class = TextExamples

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.settings = task = EmbeddingConfig.of(config.task)
        self.graded = task.problem_type == "regression"
        self.metric_kind = "values" if self.graded else "ranks"
        self.metric_names = (
            ("pearson", "spearman", "squared_error")
            if self.graded
            else ("mrr_at_10", "recall_at_1", "recall_at_5", "recall_at_10")
        )
        self.init_embedding = init_embedding(config.train.init_from)
        self.similarity = task.similarity or ("cosine" if task.normalize else "dot")  # as in the loss
        self.ranking = "dot" if task.normalize and self.similarity == "cosine" else self.similarity
        super().__init__(config, corpus)

    @override
    def make_objective(self) -> EmbeddingObjective:
        skipped = 0
        if self.settings.prompt and not self.init_embedding.include_prompt:
            ((ids, _),) = encode_texts(self.tokenizer, [self.settings.prompt], None, self.config.data.max_length)
            skipped = len(ids) - int(ids[-1] in self.tokenizer.special_ids)
        return EmbeddingObjective(self.config, skipped)

    @classmethod
    @override
    def head(cls, config: Config) -> str:
        return "none"

    @classmethod
    @override
    def reader(cls, config: Config) -> EmbeddingReader:
        return EmbeddingReader(config)

    @classmethod
    @override
    def check(cls, config: Config, arch: Architecture) -> None:
        super().check(config, arch)
        task, train = EmbeddingConfig.of(config.task), config.train
        cls.reader(config)
        try:
            embedding_settings(config, arch).check()
        except UserError as error:
            raise ConfigError(f"config.task.pooling: {error}") from error
        if task.problem_type == "regression":
            if not task.normalize or task.negative_key or task.symmetric or task.value_zero == task.value_one:
                raise ConfigError(
                    "config.task.problem_type=regression compares cosines with values: task.normalize must be true, negative_key empty, symmetric "
                    "false, and value_zero another number than value_one."
                )
            return
        if train.batch_size < 2:
            raise ConfigError(
                f"train.batch_size={train.batch_size}: the loss compares each pair with the other pairs of the batch. Use 2 or more."
            )
        if train.accumulation_steps > 1 or config.mesh.preset == "shard_map":
            raise ConfigError(
                f"train.accumulation_steps={train.accumulation_steps} and mesh.preset={config.mesh.preset}: the loss compares each pair "
                "with all others of the batch, which must be computed at once, as one program. Set accumulation_steps=1 and another "
                "preset; to save memory lower train.batch_size or data.max_length, or set model.remat=full."
            )

    @classmethod
    @override
    def define(cls, config: Config, vocab_size: int, corpus: LabeledCorpus) -> ModelDefinition:
        return define(define_model(config.model, vocab_size).arch, HeadSpec("none", 1, pooled=False))

    def export_settings(self, arch: Architecture) -> text_embedding.EmbeddingConfig:
        """Combine the run's embedding settings with the initial model's prompts; the run's own prompt becomes the default."""
        init, prompt = self.init_embedding, self.settings.prompt
        prompts, default_name = dict(init.prompts), init.default_prompt_name
        if prompt != ((None if default_name is None else prompts.get(default_name)) or ""):
            default_name = next((name for name, text in prompts.items() if text == prompt), "default")
            prompts[default_name] = prompt
        return dataclasses.replace(
            embedding_settings(self.config, arch),
            prompts=prompts,
            default_prompt_name=default_name,
            similarity=self.similarity,
            include_prompt=init.include_prompt,
            truncate_dim=init.truncate_dim,
        )

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Make the file of embedding settings, which our own readers use."""
        return {sentence_transformers.NATIVE: self.export_settings(arch).dumps()}

    @override
    def write_files(self, directory: pathlib.Path, arch: Architecture) -> None:
        sentence_transformers.save(directory, self.export_settings(arch), arch.output_width)

    @override
    def default_metric(self) -> str:
        return "spearman" if self.graded else "mrr_at_10"

    @override
    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        return super().outputs(model, batch) | {"texts_BC": batch["texts_BC"]}

    def _collect(self, outputs: list[Outputs]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Collect vectors [N, C, D], text ids [N, C] and labels [N] of all records."""
        names = ("logits", "texts_BC", "labels_B")
        vectors_NCD, texts_NC, labels_N = (concat_outputs(outputs, name) for name in names)
        return vectors_NCD[..., : self.init_embedding.truncate_dim or None], texts_NC, labels_N

    @override
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs:
        vectors_NCD, texts_NC, labels_N = self._collect(outputs)
        if self.graded:
            values_N = similarity_pairwise(vectors_NCD[:, 0], vectors_NCD[:, 1], self.similarity)
            return metrics.MetricInputs("values", predictions=values_N, references=labels_N)
        return metrics.MetricInputs("ranks", ranks=ranks(vectors_NCD, texts_NC, self.ranking))

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per record, for predictions.jsonl: its similarity or, for pairs, also the right text's rank among all."""
        vectors_NCD, texts_NC, labels_N = self._collect(outputs)
        values_N = similarity_pairwise(vectors_NCD[:, 0], vectors_NCD[:, 1], self.similarity)
        similarities = [round(value, 6) for value in values_N.tolist()]
        if self.graded:
            for label, value in zip(labels_N.tolist(), similarities, strict=True):
                yield {"label": label, "prediction": value}
        else:
            for rank, value in zip(ranks(vectors_NCD, texts_NC, self.ranking).tolist(), similarities, strict=True):
                yield {"rank": rank, "similarity": value}

    @override
    def baseline(self) -> str:
        arrays = self.corpus.arrays["validation"]
        if self.graded:
            train, held = self.corpus.arrays["train"]["labels"], arrays["labels"]
            return f"always the mean: squared error {np.square(held - train.mean()).mean():.4g}"
        return f"guessing: recall at 1 about {1 / (arrays['record'][-1] + 1):.2g}"
