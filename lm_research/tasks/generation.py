"""The base of tasks that generate texts: it decodes held-out records within the evaluation step and scores the texts.

Decoding is part of the step's program, so it runs on the run's mesh and processes, and each record is decoded once, whatever the batch
size. task.generation sets how to decode; the model's own files set which token begins a text and which tokens are forced.

Legend: B batch, T new tokens.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from typing_extensions import override

from lm_research import metrics
from lm_research.common.paths import as_path
from lm_research.config import Config, TaskConfig, key, resolve
from lm_research.config.run_files import read_config
from lm_research.decoding.generation_config import FILE, load_defaults, make_options, with_decoder_keys
from lm_research.decoding.jit_generate import ARGUMENTS, decode
from lm_research.decoding.prompts import Prompts
from lm_research.errors import ConfigError, UserError, suggest
from lm_research.interop import native_checkpoint
from lm_research.interop.model_directories import inspect
from lm_research.metrics.texts import is_equal
from lm_research.models.architecture import Architecture
from lm_research.models.families import family_of
from lm_research.models.families.base import Family
from lm_research.objectives.base import Batch, Outputs, SmoothedConfig
from lm_research.objectives.encoder_decoder import start_role
from lm_research.tasks.base import Task, drop_padding
from lm_research.tasks.dataset import LabeledCorpus

# Entries of a model's files about the tokens of a text.
_TOKENS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
_SAMPLE_CHARS = 300  # characters of a source that the log shows


@dataclasses.dataclass(frozen=True)
class GenerationConfig(TaskConfig):
    """Settings of tasks that generate texts."""

    reads_objective = "seq2seq"
    not_reading = TaskConfig.not_reading | {"label_smoothing", "predict_with_generate", "generation"}
    for_training = TaskConfig.for_training | {"label_smoothing", "predict_with_generate"}

    label_smoothing: float = key(
        0.0,
        "Probability spread evenly over all tokens during training.",
        low=0.0,
        high=0.99,
    )
    predict_with_generate: str = key(
        "end",
        "When to generate from held-out examples and score the output: in each evaluation, at the end of the run, "
        "or never.",
        choices=("each", "end", "never"),
    )
    generation: dict[str, bool | int | float | str] | None = key(
        None,
        "Arguments of lm.generate, as num_beams=4,length_penalty=2.0 or a dict; None decodes greedily.",
        read=lambda text: parse_generation(text),
    )

    @override
    def check(self, config: Config) -> None:
        check_generation(self.generation or {})
        if SmoothedConfig.of(config.objective).label_smoothing:
            raise ConfigError(
                f"config.objective.label_smoothing has no effect on task.name={self.name}. Set --config.task.label_smoothing."
            )


class GenerationTask(Task):
    """A task whose predictions are texts, and whose objective is a language model's.

    Attributes:
      init_settings: the settings of tokens and decoding in the files of the model that the run starts from.
      options: how held-out records are decoded.
      max_new_tokens: the maximum length of generated texts.
    """

    supports_packing = True
    metric_kind = "texts"

    settings: GenerationConfig

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.settings = task = GenerationConfig.of(config.task)
        if task.metric and task.metric in self.metric_names and task.predict_with_generate != "each":
            raise ConfigError(
                f"config.task.metric={task.metric} scores generated texts, and picks the best checkpoint only if each evaluation "
                "generates some: set --config.task.predict_with_generate=each, and --config.eval.num_batches to limit how many."
            )
        super().__init__(config, corpus)
        self.has_predictions = task.predict_with_generate != "never"
        self.init_settings = read_init_settings(config.train.init_from)
        tokens = {name: self.init_settings[name] for name in _TOKENS if self.init_settings.get(name) is not None}
        tokens |= {"eos_token_id": self.tokenizer.eos_id, "pad_token_id": self.pad_id}
        self.options = make_options(check_generation(task.generation or {}), {}, tokens)

    @property
    @abc.abstractmethod
    def max_new_tokens(self) -> int:
        """The maximum length of generated texts in tokens."""

    @abc.abstractmethod
    def prompts(self, batch: Batch) -> Prompts[jax.Array]:
        """Make the prompts of a batch, from which texts are generated."""

    @abc.abstractmethod
    def record_texts(self, metadata: dict[str, Any]) -> dict[str, str]:
        """Return a record's texts for predictions.jsonl, by field; the last is the reference."""

    @property
    def pad_id(self) -> int:
        """The padding token, or the end token of tokenizers without one."""
        return self.tokenizer.roles.get("pad", self.tokenizer.eos_id)

    @override
    def default_metric(self) -> str:
        return self.metric_names[0] if self.settings.predict_with_generate == "each" else "lm_loss_nats"

    def should_generate(self, purpose: str) -> bool:
        """Decide whether records read for this purpose ("train", "validation", or "final", the end of a run) are decoded."""
        return purpose != "train" and self.settings.predict_with_generate in (
            ("each", "end") if purpose == "final" else ("each",)
        )

    @property
    @override
    def evaluates_more_at_end(self) -> bool:
        return self.should_generate("final") != self.should_generate("validation")

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the numbers of a batch's records and, if they are decoded, the generated tokens, int32 [B, T]."""
        records = {name: batch[name] for name in ("row_weights_B", "record_B")}
        if "decoded_B" not in batch:
            return records
        generated_BT = decode(model, self.options, self.max_new_tokens, self.prompts(batch), self.tokenizer.size)
        return records | {"generated_BT": generated_BT}

    def generated_texts(self, outputs: list[Outputs]) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each record's metadata and generated text, in order; nothing if the part was not decoded."""
        ends = self.options.ends
        for output in outputs:
            if "generated_BT" not in output:
                return
            for number, tokens_T in zip(
                drop_padding(output, "record_B").tolist(), drop_padding(output, "generated_BT"), strict=True
            ):
                part, number = self.corpus.locate(number)
                stop = np.flatnonzero(np.isin(tokens_T, ends))
                text = self.tokenizer.decode(tokens_T[: stop[0] if len(stop) else None].tolist())
                yield self.corpus.metadata[part][number], text.strip()

    @override
    def ranking_metrics(self) -> list[str]:
        return super().ranking_metrics() if self.settings.predict_with_generate == "each" else []

    def metric_options(self) -> dict[str, str]:
        """Return options of the metrics of texts, see metrics.KINDS."""
        return {}

    @override
    def scored(self, outputs: list[Outputs]) -> metrics.MetricInputs | None:
        generated = list(self.generated_texts(outputs))
        if not generated:
            return None
        predictions, references = [text for _, text in generated], [self._target(metadata) for metadata, _ in generated]
        return metrics.MetricInputs("texts", predictions=predictions, references=references, **self.metric_options())

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """Yield one prediction per record, for predictions.jsonl."""
        for metadata, text in self.generated_texts(outputs):
            exact_match = float(is_equal(text, self._target(metadata)))
            yield {**self.record_texts(metadata), "prediction": text, "exact_match": exact_match}

    def _target(self, metadata: dict[str, Any]) -> str:
        return list(self.record_texts(metadata).values())[-1]

    @override
    def samples(self, outputs: list[Outputs], count: int) -> list[str]:
        generated = zip(range(count), self.generated_texts(outputs), strict=False)
        pairs = ((list(self.record_texts(metadata).values()), text) for _, (metadata, text) in generated)
        return [f"{texts[0][:_SAMPLE_CHARS]}\n    -> {text}\n    == {texts[-1]}" for texts, text in pairs]

    @override
    def baseline(self) -> str:
        return "of target tokens"

    def summarize(self, scores: Mapping[str, float]) -> str:
        """Describe the final result in one line."""
        names = [name for name in ("lm_loss_nats", "perplexity", *self.metric_names) if f"eval_{name}" in scores]
        return "held-out " + ", ".join(f"{name} {scores[f'eval_{name}']:.4g}" for name in names)

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Set the ids of the end and padding tokens, because a family's defaults are those of its own tokenizer."""
        return {**config, "pad_token_id": self.pad_id, "eos_token_id": self.tokenizer.eos_id}

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """Make generation_config.json, so that the fine-tuned model decodes as the run did."""
        tokens = {name: getattr(self.options, name) for name in (*_TOKENS, "eos_token_id", "pad_token_id")}
        chosen = {name: value for name, value in tokens.items() if value is not None}
        chosen |= (self.settings.generation or {}) | {"max_new_tokens": self.max_new_tokens}
        return {FILE: (json.dumps(chosen, indent=2, sort_keys=True) + "\n").encode()}


def parse_generation(text: str) -> dict[str, Any]:
    """Parse comma-separated NAME=VALUE arguments; raise like `check_generation`."""
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in ARGUMENTS:
            raise ConfigError(
                f"config.task.generation has {part!r}. {suggest(name, ARGUMENTS)} Write for example num_beams=4."
            )
        try:
            given[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            given[name] = value
    return check_generation({name: value for name, value in given.items() if value is not None})


def check_generation(given: dict[str, Any]) -> dict[str, Any]:
    """Check arguments of task.generation and return them; raise a ConfigError for unknown names and invalid values."""
    for name in given:
        if name not in ARGUMENTS:
            raise ConfigError(
                f"config.task.generation has {name!r}. {suggest(name, ARGUMENTS)} Write for example num_beams=4."
            )
    try:
        make_options(given, {}, {})
    except UserError as error:
        raise ConfigError(f"config.task.generation={given!r}: {error}") from error
    return given


def read_init_settings(path: str | None) -> dict[str, Any]:
    """Read the settings of tokens from a model directory's generation_config.json and config.json; {} without a directory.

    "family" is the model's family. For our own pre-training runs, "start_role" is the role of the token that began their targets, because
    the id in the family's config.json belongs to the family's own tokenizer.
    """
    if not path:
        return {}
    directory = as_path(path)
    found = inspect(directory)
    settings = {**with_decoder_keys(found.config), **load_defaults(found.files), "family": found.family}
    start = family_of(found.family).start_token
    if settings.get("decoder_start_token_id") is None and start != Family.start_token:
        settings["decoder_start_token_id"] = settings.get(start)
    if native_checkpoint.is_run(directory):
        run = resolve(read_config(found.files / "config.json"))
        settings |= {} if run.task else {"start_role": start_role(run)}
    return settings
