"""The parts of a run before it has a state: devices, corpus, model, objective, and a fully resolved config."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax

from lm_research import config as config_lib
from lm_research import tasks
from lm_research.common.bucket_copies import BucketCopy
from lm_research.config import Config
from lm_research.data.corpus import Corpus
from lm_research.data.mixture import mix
from lm_research.data.sampler import Examples
from lm_research.data.verify import Verification
from lm_research.errors import TokenizerError
from lm_research.models.adapters import adapt
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import VOCAB_MULTIPLE, define_model, table_rows
from lm_research.models.quantization import check_quantization
from lm_research.objectives.balanced import balanced
from lm_research.objectives.base import Objective, Trainable
from lm_research.parallel import exchange, processes
from lm_research.parallel.batches import check_batch, resolve_batch
from lm_research.parallel.compiler_options import compiler_options
from lm_research.parallel.hardware import current_chip
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.precision import with_dtype
from lm_research.run import run_directory
from lm_research.run.budget import check_epochs, resolve_budget, resolve_steps
from lm_research.run.compile_cache import use_compile_cache
from lm_research.run.init_checkpoint import InitCheckpoint, apply_init_checkpoint, load_init_checkpoint
from lm_research.run.logger import RunLogger
from lm_research.run.meter import step_size
from lm_research.run.trackers.threads import check_installed
from lm_research.tasks.rows import why_alone
from lm_research.training.param_groups import make_groups


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """The parts of one run.

    Attributes:
      config: with the batch, the number of steps and the keys that `init` decides filled in.
      workdir: the run directory, on this machine or in a bucket.
      copy: its files, in a local folder (`files`) if it is in a bucket.
      mesh: over all devices.
      log: of the run.
      is_main: whether this is process 0, which writes the files that processes have in common.
      corpus: the text or data set.
      verification: of the corpus, which may continue in the background while the run trains.
      init: the model directory that the run starts from, if any.
      definition: the model, with its adapters.
      trainable: the task or objective of the run.
      examples: the training examples.
    """

    config: Config
    workdir: pathlib.Path
    copy: BucketCopy
    mesh: jax.sharding.Mesh
    log: RunLogger
    is_main: bool
    corpus: Corpus
    verification: Verification
    init: InitCheckpoint | None
    definition: ModelDefinition
    trainable: Trainable[Any]
    examples: Examples

    @property
    def files(self) -> pathlib.Path:
        """The local folder that the run's files are written to: the run directory, or what is copied to it."""
        return self.copy.folder

    @property
    def objective(self) -> Objective:
        """The training objective."""
        return balanced(self.trainable.objective, self.definition.arch)

    @property
    def compiler_options(self) -> dict[str, str]:
        """The compiler's options for the run's steps."""
        return compiler_options(self.config.xla.flags, self.mesh.shape)


def prepare(config: Config, workdir: pathlib.Path, ends: contextlib.ExitStack) -> RunSetup:
    """Prepare everything that comes before the state; `ends` closes it when the run ends.

    Raises:
      UserError: the config is impossible, or differs from that of the run in `workdir`.
    """
    run_directory.check_shared(workdir)
    log_name = processes.log_name(jax.process_index())
    copy = ends.enter_context(BucketCopy(workdir, also=[log_name] if jax.process_index() else []))
    config = with_dtype(config)
    init = load_init_checkpoint(config)
    config = apply_init_checkpoint(init, config)
    mesh = make_mesh(config.mesh)
    config = resolve_batch(config, mesh.size)
    _check(config, workdir, mesh, init)
    _set_up_jax(config, mesh)
    is_main = jax.process_index() == 0
    if is_main:
        check_installed(config_lib.tracker_names(config))
    log = RunLogger(copy.folder, is_main, log_name, copy.named)
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    use_compile_cache(log, is_main)
    log(f"run: {workdir} on {jax.device_count()} x {jax.devices()[0].device_kind}" + (f" ({shape})" if shape else ""))

    with exchange.process_0_first("corpus"):
        corpus = tasks.trainable_class(config).open_corpus(config, workdir, log)
    verification = ends.enter_context(Verification(corpus.stores, config.data.verify, log))
    vocab_size = pick_vocab_size(config, corpus)
    if config.task:
        init = load_init_checkpoint(config, corpus)  # again, now with the number of labels
    definition = adapt(init.definition if init else tasks.define(config, vocab_size, corpus), config.lora)
    trainable = tasks.build(config, corpus, definition.arch)

    def make_examples(store: Any) -> Any:
        return trainable.examples(store, "train")

    examples = mix(config.data, corpus.train, config.train.batch_size, make_examples)
    config = resolve_steps(config, examples.num_examples)
    config = resolve_budget(config, *step_size(config, trainable.objective, definition, examples))
    check_epochs(config, examples)
    parts = (log, is_main, corpus, verification, init, definition, trainable, examples)
    run = RunSetup(config, workdir, copy, mesh, *parts)
    log(describe(run))
    return run


def _check(config: Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh, init: InitCheckpoint | None) -> None:
    """Raise a UserError if the run is impossible, before a corpus is built in vain."""
    run_directory.check_config(workdir, config)
    check_batch(mesh, config.train.batch_size, config.train.accumulation_steps, config.data.max_length)
    arch = init.definition.arch if init else define_model(config.model, VOCAB_MULTIPLE).arch
    tasks.validate(config, arch)
    check_quantization(config, arch, mesh.shape, current_chip())


def _set_up_jax(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Set the mesh and the precision."""
    jax.set_mesh(mesh)
    if config.model.dtype == "float32":  # not the lower precision that TPUs and GPUs use for its products by default
        jax.config.update("jax_default_matmul_precision", "float32")


def pick_vocab_size(config: Config, corpus: Corpus) -> int:
    """Choose the rows of the token table: as configured, or the tokenizer's size rounded up.

    Raises:
      TokenizerError: the tokenizer has more tokens than the model has rows.
    """
    configured, size = config.model.vocab_size, corpus.tokenizer.size
    if configured and configured < size:
        raise TokenizerError(
            f"The tokenizer has {size} tokens, but config.model.vocab_size={configured} gives the model fewer rows. Set "
            f"--config.model.vocab_size=0 to follow the tokenizer, or use a tokenizer of at most {configured} tokens."
        )
    return table_rows(config.model, size)


def describe(run: RunSetup) -> str:
    """Describe the model and its training in two or three lines."""
    config, arch, train = run.config, run.definition.arch, run.config.train
    passes = train.num_steps * train.batch_size / run.examples.num_examples
    alone = why_alone(arch) if config.task and config.data.packing else ""
    timed = config_lib.has_time_budget(config)
    steps = f"{train.budget} of steps" if timed else f"{train.num_steps:,} steps"
    read = "" if timed else f", read {passes:.1f} times"
    trained = make_groups(config, run.definition.shapes, run.definition.layers_of).describe(run.definition.shapes)
    trained = f", {trained}" if trained else ""
    return (
        f"model: {config.model.family}, {arch.num_layers} layers x {arch.hidden_size}, vocabulary {arch.vocab_size:,}, "
        f"{run.definition.num_params:,} parameters, {config.task.name if config.task else config.objective.name}{trained}\n"
        f"train: {steps} of {train.batch_size} x {config.data.max_length} tokens; "
        f"{run.examples.num_examples:,} examples{read}"
        + (f"\nrows: {run.examples.notes}" if run.examples.notes else "")
        + (f"\nrows: each record has its own in spite of data.packing, because {alone}" if alone else "")
    )
