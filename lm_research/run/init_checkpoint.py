"""The model directory that a training run starts from (train.init_from), and its effect on the run's config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from lm_research import tasks
from lm_research.common.paths import as_path, is_remote
from lm_research.config import Config, ModelConfig, replace
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError, PretrainedError, TokenizerError
from lm_research.interop import huggingface, native_checkpoint, sentence_transformers
from lm_research.interop.model_directories import inspect, load_params
from lm_research.interop.weight_reader import listed
from lm_research.models.definition import Params, define
from lm_research.models.families import FAMILIES, family_of
from lm_research.models.families.common import given
from lm_research.pretrained import PathLike
from lm_research.tasks.embedding import EmbeddingConfig
from lm_research.tokenizers.loading import load_tokenizer


class InitCheckpoint:
    """A model directory that a training run starts from.

    Attributes:
      definition: its architecture, with the run's dropout, compute dtype, layer scan, remat, attention backend and head.
      family: a key of FAMILIES.
      config: its config.json in the Hugging Face format.
      tokenizer: the path of its tokenizer, a directory or a GGUF file.
      plugins: modules that may define its family, as in the config key `plugins`.
      embedding: its settings for embedding texts; None if it has none, or ones that cannot be trained.
    """

    def __init__(self, path: PathLike, model: ModelConfig, head: str, num_labels: int | None = None) -> None:
        """Inspect the directory; raise a PretrainedError like `from_pretrained`."""
        self.directory = as_path(path)
        self._found = inspect(self.directory, head, num_labels)
        self.tokenizer = self.directory
        if not (isinstance(self._found, native_checkpoint.Native) or is_remote(self.directory)):
            self.tokenizer = self._found.tokenizer
        names: tuple[str, ...] = ("dropout_rate", "attention_dropout_rate", "dtype", "scan_layers")
        names += ("remat", "remat_names", "attention_backend")
        arch = self._found.definition.arch.replace(**{name: getattr(model, name) for name in names})
        self.definition = define(arch, self._found.definition.head)
        self.family, self.config = self._found.family, self._found.config
        self.plugins = self._found.plugins if isinstance(self._found, native_checkpoint.Native) else ()
        embedding = sentence_transformers.load(self._found.files)
        self.embedding = embedding if embedding is not None and embedding.supported and not embedding.dense else None

    @property
    def new_parts(self) -> tuple[str, ...]:
        """Patterns of the parts that a run initializes: those that the directory lacks, and always the classifier."""
        missing = (
            native_checkpoint if isinstance(self._found, native_checkpoint.Native) else huggingface
        ).missing_params(self._found)
        parts = {path.partition("/")[0] for path in missing}
        return tuple(f"^{part}/" for part in sorted(parts | ({"classifier"} & set(self.definition.shapes))))

    def load(self, mesh: Mesh, seed: int) -> tuple[Params, list[str]]:
        """Load its parameters in float32 onto the mesh, with sentences about what was initialized or not used, dropout rates too.

        Raises:
          PretrainedError: like `from_pretrained`, or a parameter is not finite, which would make every loss NaN.
        """
        params, report = load_params(self._found, mesh, "float32", seed, fresh_head=True)
        if report.nonfinite:
            raise PretrainedError(
                f"train.init_from={self.directory} has weights that are NaN or infinite, and every loss would be: "
                f"{', '.join(listed(report.nonfinite))}. Download or convert it again, or start from an earlier checkpoint of it."
            )
        return params, report.lines() + self._unused_rates()

    def _unused_rates(self) -> list[str]:
        """Name the dropout rates in config.json that differ from those of the run."""
        arch, head = self.definition.arch, self.definition.head
        fields = {key.name: key.field for key in family_of(self.family).config_fields}
        classifier = arch.dropout_rate if arch.classifier_dropout_rate is None else arch.classifier_dropout_rate
        unused = []
        for path, rate in _rates_in(self.config):
            name = path.rpartition(".")[2]
            of_classifier = bool(re.search("classif|summary|pooler|cls", name))
            if of_classifier and not (head.kind.classifies and head.kind.pooler == "yes"):
                continue
            if name == "qa_dropout" and head.name != "span":
                continue
            used = arch.attention_dropout_rate if name.startswith("att") else arch.dropout_rate
            used = classifier if of_classifier else 0.0 if "layerdrop" in name else used
            used = given(vars(arch), fields[name], used) if name in fields else used
            if rate != used:
                unused.append(f"{path}={rate} ({used} here)")
        return [f"dropout rates of its config.json that differ from this run's: {', '.join(unused)}"] if unused else []


def _rates_in(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the dropout rates in a config.json and in the objects of its parts, except images', by path; outer ones win."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name != "vision_config":
            inner = ((path, rate) for path, rate in _rates_in(value) if path.rpartition(".")[2] not in config)
            yield from ((f"{name}.{path}", rate) for path, rate in inner)
        elif "drop" in name and type(value) in (int, float):
            yield name, value


def load_init_checkpoint(config: Config, corpus: Corpus | None = None) -> InitCheckpoint | None:
    """Inspect the model directory that the run starts from, if it has one; raise a PretrainedError if it is not usable.

    With the corpus of a labeled data set the head gets its number of classes.
    """
    if not config.train.init_from:
        if config.lora.rank:
            raise ConfigError(
                f"lora.rank={config.lora.rank} trains adapters of an existing model: name its directory in --config.train.init_from, or "
                "train all parameters with --config.lora.rank=0."
            )
        return None
    kind = tasks.trainable_class(config)
    num_labels = None if corpus is None else kind.num_labels(config, corpus)
    return InitCheckpoint(config.train.init_from, config.model, kind.head(config), num_labels)


def apply_init_checkpoint(init: InitCheckpoint | None, config: Config) -> Config:
    """Fill in the config from the init checkpoint: the model's family and shape, and the tokenizer.

    Raises:
      ConfigError: config.tokenizer.path names a tokenizer whose ids differ from the checkpoint's.
    """
    if init is None:
        return config
    arch, width = init.definition.arch, config.data.max_length
    shape = {
        "family": init.family,
        "hidden_size": arch.hidden_size,
        "num_layers": arch.num_layers,
        "num_heads": arch.num_heads,
        "num_kv_heads": arch.num_kv_heads,
        "head_size": arch.head_size,
        "embedding_size": arch.embedding_size,
        "intermediate_size": arch.intermediate_size,
        "max_length": arch.max_length or max(config.model.max_length, width),
        "vocab_size": arch.vocab_size,
        "norm_position": arch.layers[0].residual if arch.layers[0].residual in ("pre", "post") else "",
        "mup_base_width": arch.mup_base_width,
        "mup_base_head_size": 0,
    }
    path = str(init.tokenizer)
    if config.tokenizer.path not in (None, path):
        _check_same_ids(config.tokenizer.path, init)
        path = config.tokenizer.path
    shape = {name: value for name, value in shape.items() if name == "family" or name in FAMILIES.keys(init.family)}
    lora = {"modules_to_save": config.lora.modules_to_save or init.new_parts} if config.lora.rank else {}
    plugins = tuple(dict.fromkeys((*config.plugins, *init.plugins)))  # readers of this run need both
    changes = dict(model=shape, tokenizer={"path": path}, lora=lora, task=_embedding_keys(init, config))
    return replace(config, plugins=plugins, **changes)


def _check_same_ids(path: str, init: InitCheckpoint) -> None:
    try:
        init_tokenizer = load_tokenizer(init.tokenizer)
    except TokenizerError:  # a directory with weights only
        return
    if load_tokenizer(path).digest != init_tokenizer.digest:
        raise ConfigError(
            f"config.tokenizer.path={path} is not the tokenizer of train.init_from={init.directory}, whose weights only fit its own ids. "
            "Leave tokenizer.path empty; or, to use another vocabulary, leave train.init_from empty and train from scratch."
        )


def _embedding_keys(init: InitCheckpoint, config: Config) -> dict[str, str]:
    """Fill empty keys of an embedding task from the init checkpoint's embedding settings."""
    embedding, task = init.embedding, config.task
    if embedding is None or not isinstance(task, EmbeddingConfig):
        return {}
    return {
        "pooling": task.pooling or embedding.pooling,
        "prompt": task.prompt or embedding.prompt(),
        "similarity": task.similarity or embedding.similarity,
    }
