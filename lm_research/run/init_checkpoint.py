"""The model directory that a training run starts from (train.init_from), and what it decides of the run's config."""

from __future__ import annotations

import pathlib

from jax.sharding import Mesh

from lm_research import tasks
from lm_research.config import Config, ModelConfig, replace
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError, PretrainedError, TokenizerError
from lm_research.interop import huggingface, native_checkpoint, sentence_transformers
from lm_research.interop.weight_reader import listed
from lm_research.models.definition import Params, define
from lm_research.models.families import FAMILIES
from lm_research.pretrained import PathLike, inspect, load_params
from lm_research.tasks.embedding import EmbeddingConfig
from lm_research.tokenizers.loading import load_tokenizer


class InitCheckpoint:
    """A model directory that a training run starts from.

    Attributes:
      definition: its architecture, with dropout, compute type, loop, remat and attention of the run, and the run's head.
      family: a key of FAMILIES.
      config: its config.json in the Hugging Face format.
      tokenizer: where its tokenizer is found.
      plugins: modules that may have its family, as the config key `plugins` names them.
      embedding: how it makes embeddings of texts; None where it does not say, or in a way that is not trained here.
    """

    def __init__(self, path: PathLike, model: ModelConfig, head: str, num_labels: int | None = None) -> None:
        """Looks at the directory; raises a PretrainedError like `from_pretrained`."""
        self.directory = pathlib.Path(path)
        self._found = inspect(self.directory, head, num_labels)
        self.tokenizer = self.directory if isinstance(self._found, native_checkpoint.Native) else self._found.files
        names = ("dropout_rate", "attention_dropout_rate", "dtype", "scan_layers", "remat", "attention_backend")
        arch = self._found.definition.arch.replace(**{name: getattr(model, name) for name in names})
        self.definition = define(arch, self._found.definition.head)
        self.family, self.config = self._found.family, self._found.config
        self.plugins = self._found.plugins if isinstance(self._found, native_checkpoint.Native) else ()
        said = sentence_transformers.load(self._found.files)
        self.embedding = said if said is not None and said.supported and not said.dense else None

    @property
    def new_parts(self) -> tuple[str, ...]:
        """Patterns of parts that a run begins anew: what the directory lacks, and a classifier in any case."""
        missing = (
            native_checkpoint if isinstance(self._found, native_checkpoint.Native) else huggingface
        ).missing_params(self._found)
        parts = {path.partition("/")[0] for path in missing}
        return tuple(f"^{part}/" for part in sorted(parts | ({"classifier"} & set(self.definition.shapes))))

    def load(self, mesh: Mesh, seed: int) -> tuple[Params, list[str]]:
        """Its parameters in float32 on the mesh, and sentences about what had to be initialized or was not used.

        Raises:
          PretrainedError: like `from_pretrained`, or they are not all finite: no loss of theirs would be.
        """
        params, report = load_params(self._found, mesh, "float32", seed, fresh_head=True)
        if report.nonfinite:
            raise PretrainedError(
                f"train.init_from={self.directory} has weights that are NaN or infinite, and every loss would be: "
                f"{', '.join(listed(report.nonfinite))}. Download or convert it again, or start from an earlier checkpoint of it."
            )
        return params, report.lines()


def load_init_checkpoint(config: Config, corpus: Corpus | None = None) -> InitCheckpoint | None:
    """The model directory that the run starts from, if it does; raises a PretrainedError if there is none such.

    Of a labeled data set the head gets its classes.
    """
    if not config.train.init_from:
        if config.lora.rank:
            raise ConfigError(
                f"lora.rank={config.lora.rank} trains adapters of a model that stays as it is, so it needs one: name its directory in "
                "--config.train.init_from, or train all parameters with --config.lora.rank=0."
            )
        return None
    kind = tasks.trainable_class(config)
    num_labels = None if corpus is None else kind.num_labels(config, corpus)
    return InitCheckpoint(config.train.init_from, config.model, kind.head(config), num_labels)


def apply_init_checkpoint(init: InitCheckpoint | None, config: Config) -> Config:
    """The config with what the init checkpoint decides: the model's family and shape, and the tokenizer.

    Raises:
      ConfigError: config.tokenizer.path names a tokenizer that gives other ids than its own.
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
    plugins = tuple(dict.fromkeys((*config.plugins, *init.plugins)))  # which whoever reads this run needs as well
    changes = dict(model=shape, tokenizer={"path": path}, lora=lora, task=_as_init_embeds(init, config))
    return replace(config, plugins=plugins, **changes)


def _check_same_ids(path: str, init: InitCheckpoint) -> None:
    try:
        own = load_tokenizer(init.tokenizer)
    except TokenizerError:  # a directory of weights alone
        return
    if load_tokenizer(path).digest != own.digest:
        raise ConfigError(
            f"config.tokenizer.path={path} is not the tokenizer of train.init_from={init.directory}, whose weights know its own ids alone. "
            "Leave tokenizer.path empty; or, to use another vocabulary, leave train.init_from empty and train from the beginning."
        )


def _as_init_embeds(init: InitCheckpoint, config: Config) -> dict[str, str]:
    """Keys of the section task that are empty, and that the way in which the init checkpoint makes embeddings decides."""
    said = init.embedding
    task = config.task
    if said is None or not isinstance(task, EmbeddingConfig):
        return {}
    return {
        "pooling": task.pooling or said.pooling,
        "prompt": task.prompt or said.prompt(),
        "similarity": task.similarity or said.similarity,
    }
