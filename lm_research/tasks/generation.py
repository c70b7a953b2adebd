"""What tasks that write texts share: decoding of held-out records within the evaluation step, and what is made of it.

Decoding is part of the step's program, so it runs on the run's mesh and processes, and each record is written once, whatever the batch
size. How to decode is said by task.generation; which token begins a text, and which are forced, by the model's own files.

Legend: B batch, T new tokens.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lm_research import metrics
from lm_research.config import Config, TaskConfig, key, resolve
from lm_research.config.run_files import read_config
from lm_research.decoding.generation_config import FILE, load_defaults, make_options, with_decoder_keys
from lm_research.decoding.jit_generate import ARGUMENTS, decode
from lm_research.decoding.prompts import Prompts
from lm_research.errors import ConfigError, UserError, suggest
from lm_research.interop import huggingface, native_checkpoint
from lm_research.metrics.texts import is_equal
from lm_research.models.architecture import Architecture
from lm_research.objectives.base import Batch, Outputs
from lm_research.objectives.encoder_decoder import start_role
from lm_research.tasks.base import Task, drop_padding
from lm_research.tasks.dataset import LabeledCorpus

# What a model's files may say about the tokens of a text.
_TOKENS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
_SHOWN = 300  # characters of a source that the log shows


@dataclasses.dataclass(frozen=True)
class GenerationConfig(TaskConfig):
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
        read=lambda text: parse_decoding(text),
    )

    def check(self, config: Config) -> None:
        check_decoding(self.generation or {})


class GenerationTask(Task):
    """A task whose predictions are texts, and whose objective is a language model's.

    Attributes:
      origin: what the files of the model that the run starts from say about tokens and decoding.
      options: how held-out records are decoded.
      most: the most tokens that are written.
    """

    supports_packing = True
    metric_kind = "texts"

    settings: GenerationConfig

    def __init__(self, config: Config, corpus: LabeledCorpus) -> None:
        self.settings = task = GenerationConfig.of(config.task)
        if task.metric and task.metric in self.metric_names and task.predict_with_generate != "each":
            raise ConfigError(
                f"config.task.metric={task.metric} is of written texts, and picks the best checkpoint only if each evaluation "
                "writes some: set --config.task.predict_with_generate=each, and --config.eval.num_batches to bound how many."
            )
        super().__init__(config, corpus)
        self.has_predictions = task.predict_with_generate != "never"
        self.origin = origin_settings(config.train.init_from)
        tokens = {name: self.origin[name] for name in _TOKENS if self.origin.get(name) is not None}
        tokens |= {"eos_token_id": self.tokenizer.eos_id, "pad_token_id": self.pad_id}
        self.options = make_options(check_decoding(task.generation or {}), {}, tokens)

    @property
    @abc.abstractmethod
    def most(self) -> int: ...

    @abc.abstractmethod
    def prompts(self, batch: Batch) -> Prompts[jax.Array]:
        """What the texts of a batch are written from."""

    @abc.abstractmethod
    def texts_of(self, kept: dict[str, Any]) -> dict[str, str]:
        """What predictions.jsonl says of a record beside what was written; its last field is what should have been."""

    @property
    def pad_id(self) -> int:
        return self.tokenizer.roles.get("pad", self.tokenizer.eos_id)

    def default_metric(self) -> str:
        return self.metric_names[0] if self.settings.predict_with_generate == "each" else "lm_loss_nats"

    def decodes(self, purpose: str) -> bool:
        """Whether records are decoded that are read for this purpose ("train", "validation", or "final", the end of a run)."""
        return purpose != "train" and self.settings.predict_with_generate in (
            ("each", "end") if purpose == "final" else ("each",)
        )

    def outputs(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Which records a batch has and, if they are decoded, what was written, int32 [B, T]."""
        kept = {name: batch[name] for name in ("row_weights_B", "record_B")}
        if "decoded_B" not in batch:
            return kept
        written_BT = decode(model, self.options, self.most, self.prompts(batch), self.tokenizer.size)
        return kept | {"written_BT": written_BT}

    def written(self, outputs: list[Outputs]) -> Iterator[tuple[dict[str, Any], str]]:
        """What is kept of each record of a part and what was written for it, in order; none if nothing was decoded."""
        ends = self.options.ends
        for output in outputs:
            if "written_BT" not in output:
                return
            for number, tokens_T in zip(
                drop_padding(output, "record_B").tolist(), drop_padding(output, "written_BT"), strict=True
            ):
                part, number = self.corpus.locate(number)
                stop = np.flatnonzero(np.isin(tokens_T, ends))
                text = self.tokenizer.decode(tokens_T[: stop[0] if len(stop) else None].tolist())
                yield self.corpus.kept[part][number], text.strip()

    def ranking_metrics(self) -> list[str]:
        return super().ranking_metrics() if self.settings.predict_with_generate == "each" else []

    def metric_options(self) -> dict[str, str]:
        """The options of metrics of texts, see metrics.KINDS."""
        return {}

    def scored(self, outputs: list[Outputs]) -> metrics.Scored | None:
        found = list(self.written(outputs))
        if not found:
            return None
        references = [self._target(kept) for kept, _ in found]
        return metrics.Scored(
            "texts",
            predictions=[text for _, text in found],
            references=references,
            **self.metric_options(),
        )

    def predictions(self, outputs: list[Outputs]) -> Iterator[dict[str, Any]]:
        """One prediction a record, for predictions.jsonl."""
        for kept, text in self.written(outputs):
            right = float(is_equal(text, self._target(kept)))
            yield {**self.texts_of(kept), "prediction": text, "exact_match": right}

    def _target(self, kept: dict[str, Any]) -> str:
        return list(self.texts_of(kept).values())[-1]

    def samples(self, outputs: list[Outputs], count: int) -> list[str]:
        found = zip(range(count), self.written(outputs), strict=False)
        pairs = ((list(self.texts_of(kept).values()), text) for _, (kept, text) in found)
        return [f"{texts[0][:_SHOWN]}\n    -> {text}\n    == {texts[-1]}" for texts, text in pairs]

    def baseline(self) -> str:
        return "of target tokens"

    def summarize(self, scores: Mapping[str, float]) -> str:
        """The end of a run, in words."""
        names = [name for name in ("lm_loss_nats", "perplexity", *self.metric_names) if f"eval_{name}" in scores]
        return "held-out " + ", ".join(f"{name} {scores[f'eval_{name}']:.4g}" for name in names)

    def update_hf_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """With the tokens that texts end with and are filled up with: a family's numbers hold for its own tokenizer alone."""
        return {**config, "pad_token_id": self.pad_id, "eos_token_id": self.tokenizer.eos_id}

    def files(self, arch: Architecture) -> dict[str, bytes]:
        """generation_config.json: the fine-tuned model decodes as the run did."""
        tokens = {name: getattr(self.options, name) for name in (*_TOKENS, "eos_token_id", "pad_token_id")}
        chosen = {name: value for name, value in tokens.items() if value is not None}
        chosen |= (self.settings.generation or {}) | {"max_new_tokens": self.most}
        return {FILE: (json.dumps(chosen, indent=2, sort_keys=True) + "\n").encode()}


def parse_decoding(text: str) -> dict[str, Any]:
    """The arguments that a text spells: NAME=VALUE with commas between; raises like `check_decoding`."""
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
    return check_decoding({name: value for name, value in given.items() if value is not None})


def check_decoding(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of task.generation; raises a ConfigError for such as there are not."""
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


def origin_settings(path: str | None) -> dict[str, Any]:
    """What the files of a model directory say about tokens, generation_config.json before config.json; {} without a directory.

    "family" is the model's. Of a run of ours that was no task, "start_role" is the role of the token that its targets began with: what the
    family's config.json says holds for the family's own tokenizer.
    """
    if not path:
        return {}
    directory = pathlib.Path(path)
    ours = native_checkpoint.is_native(directory) or native_checkpoint.is_run(directory)
    found = (native_checkpoint if ours else huggingface).inspect(directory)
    settings = {**with_decoder_keys(found.config), **load_defaults(found.files), "family": found.family}
    if native_checkpoint.is_run(directory):
        run = resolve(read_config(found.files / "config.json"))
        settings |= {} if run.task else {"start_role": start_role(run)}
    return settings
