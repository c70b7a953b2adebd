"""Fine-tuning tasks, one file each: records to examples, the loss, and outputs to predictions and metrics."""

from __future__ import annotations

from typing import Any

from lm_research.config import Config, TaskConfig, replace
from lm_research.data.corpus import Corpus
from lm_research.errors import ConfigError
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition
from lm_research.models.definition import define as define_model_of
from lm_research.objectives import check_objective, objective_class
from lm_research.objectives.base import Trainable
from lm_research.tasks.base import TASKS, Task
from lm_research.tasks.dataset import LabeledCorpus
from lm_research.tasks.rows import why_alone


def task_class(task: TaskConfig) -> type[Task]:
    """Look up the class of a run's task; raise a ConfigError if no task has that name."""
    return TASKS[TASKS.name_of(task)]


def trainable_class(config: Config) -> type[Trainable[Any]]:
    """Look up the class of a run's task or, without a task, of its objective; raise like `task_class` and `objective_class`."""
    return task_class(config.task) if config.task else objective_class(config)


def validate(config: Config, arch: Architecture) -> None:
    """Raise a ConfigError if the task or objective cannot train this architecture with this config."""
    if config.task is None:
        check_objective(config, arch)
        return
    task = task_class(config.task)
    if arch.kind not in task.kinds:
        raise ConfigError(
            f"config.task.name={config.task.name} fine-tunes a model of kind {' or '.join(task.kinds)}, but model.family="
            f"{config.model.family} is of kind {arch.kind}. Choose a model of a supported kind."
        )
    task.check(config, arch)


def define(config: Config, vocab_size: int, corpus: Corpus) -> ModelDefinition:
    """Define the model of a run that does not start from a checkpoint. Call `validate` first."""
    definition = trainable_class(config).define(config, vocab_size, corpus)
    arch, roles = definition.arch, corpus.tokenizer.roles
    if arch.encoder is None:
        return definition
    # These models look up padding and end tokens by id, and a family only has the ids of its own tokenizer.
    encoder = arch.encoder.replace(pad_id=roles["pad"])
    return define_model_of(arch.replace(encoder=encoder, pad_id=roles["pad"], eos_id=roles["eos"]), definition.head)


def build(config: Config, corpus: Corpus, arch: Architecture) -> Trainable[Any]:
    """Make the task or objective of a run; raise like `validate`. Records of models that `why_alone` names have rows of their own."""
    validate(config, arch)
    if config.task:
        assert isinstance(corpus, LabeledCorpus)
        task = task_class(config.task)
        alone = config.data.packing and why_alone(arch)
        return task(replace(config, data={"packing": False}) if alone else config, corpus)
    return objective_class(config)(config, corpus.tokenizer)
