"""What models are fine-tuned for. One file a task: from records to rows, the loss, and from outputs to metrics."""

from __future__ import annotations

from typing import Any

from lm_research.config import Config, TaskConfig
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.definition import define as define_model_of
from lm_research.objectives import check_objective, objective_class
from lm_research.objectives.base import Trainable
from lm_research.tasks.base import TASKS, Task
from lm_research.tasks.dataset import LabeledCorpus


def task_class(task: TaskConfig) -> type[Task]:
    """The class of a run's task; raises a ConfigError if there is none of that name."""
    return TASKS[TASKS.name_of(task)]


def trainable_class(config: Config) -> type[Trainable[Any]]:
    """The task of a run or, where it names none, its objective; raises like `task_class` and `objective_class`."""
    return task_class(config.task) if config.task else objective_class(config)


def validate(config: Config, arch: Architecture) -> None:
    """Raises a ConfigError if the task or objective cannot train this architecture with these keys."""
    if config.task is None:
        check_objective(config, arch)
        return
    task = task_class(config.task)
    if arch.kind not in task.kinds:
        raise ConfigError(
            f"config.task.name={config.task.name} fine-tunes a model of kind {' or '.join(task.kinds)}, but model.family="
            f"{config.model.family} is of kind {arch.kind}. Start from another model."
        )
    task.check(config, arch)


def define(config: Config, vocab_size: int, corpus: Corpus) -> ModelDefinition:
    """The model of a run that starts from nothing; `validate` has passed."""
    definition = trainable_class(config).define(config, vocab_size, corpus)
    arch, roles = definition.arch, corpus.tokenizer.roles
    if arch.encoder is None:
        return definition
    # These look for the end of texts by its number, which a family knows of its own tokenizer alone.
    encoder = arch.encoder.replace(pad_id=roles["pad"])
    return define_model_of(arch.replace(encoder=encoder, pad_id=roles["pad"], eos_id=roles["eos"]), definition.head)


def build(config: Config, corpus: Corpus, arch: Architecture) -> Trainable[Any]:
    """The task or objective of a run; raises like `validate`."""
    validate(config, arch)
    if config.task:
        assert isinstance(corpus, LabeledCorpus)
        return task_class(config.task)(config, corpus)
    return objective_class(config)(config, corpus.tokenizer)
