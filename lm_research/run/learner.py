"""The state of a run, and the programs that initialize, restore and update it."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lm_research import config as config_lib
from lm_research.errors import CheckpointError
from lm_research.interop import native_checkpoint
from lm_research.objectives.base import Batch
from lm_research.parallel import exchange
from lm_research.parallel.batches import to_global
from lm_research.parallel.compiler_options import refused_options
from lm_research.parallel.rules import replicated
from lm_research.run.checkpoint import Checkpoints
from lm_research.run.checkpoint_reading import check_weights
from lm_research.run.goodput import TimeAccount
from lm_research.run.logger import RunLogger
from lm_research.run.setup import RunSetup
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import State, check_memory, init_state, state_shardings, window_zeros
from lm_research.training.step import jit_train_step, make_train_step


class Learner:
    """The owner of a run's state. There is only one, since devices may not have memory for two.

    Attributes:
      state: the state between steps, empty before `begin`.
      schedule: the learning rate of a step.
      checkpoints: of the run.
    """

    def __init__(self, run: RunSetup, ends: contextlib.ExitStack) -> None:
        """Build the programs and open the checkpoints, which `ends` closes when the run ends.

        Raises:
          MeshError: the devices lack memory for the state.
          CheckpointError: the folder of checkpoints cannot be used.
        """
        config, objective = run.config, run.objective
        optimizer, self.schedule = make_optimizer(config.optimizer), make_schedule(config)
        make_state = functools.partial(init_state, run.definition, optimizer, config, objective)
        self._run, self._shapes = run, jax.eval_shape(make_state)
        self._shardings = state_shardings(run.mesh, run.definition, self._shapes, config.mesh)
        check_memory(self._shapes, self._shardings)
        self._make_state = jax.jit(make_state, out_shardings=self._shardings)
        self._make_window = jax.jit(lambda: window_zeros(objective), out_shardings=self._shardings["window"])
        train_step = make_train_step(objective, run.definition, optimizer, self.schedule, config)
        self._train_step = jit_train_step(train_step, self._shardings, run.compiler_options)
        self._peak = jax.device_put(np.float32(config.optimizer.learning_rate), replicated(run.mesh))
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}  # by batch shape, of which tasks have several
        self.checkpoints = ends.enter_context(
            Checkpoints(run.workdir, config.checkpoint, checkpoint_files(run), run.log, run.copy.flush)
        )
        self.state: State = {}

    def begin(self) -> int:
        """Restore the state of the newest intact checkpoint or, without one, make the initial state; return its step."""
        self.state = {}  # free the old arrays first
        check = functools.partial(check_weights, self.checkpoints.directory)
        found = self.checkpoints.resume_local(self._shapes, self._shardings, lambda state, step: check(step, state))
        found = found or self.checkpoints.resume(self._read, self._run.log)
        if found is None:
            self.state = self._initial_state()
        else:
            self.state = found
            self._run.log(f"resuming after step {self.step}")
        self.checkpoints.drop_local(self.step)
        self.checkpoints.prepare(self.state)
        return self.step

    @property
    def step(self) -> int:
        """The number of steps done; reading it waits for dispatched steps."""
        return int(self.state["step"])

    def prepare(
        self, rows: dict[str, np.ndarray], schedule_args: Sequence[jax.Array], account: TimeAccount
    ) -> tuple[Batch, Callable[[State], State]]:
        """Put a batch on the devices, and return it with its step, which is compiled once per batch shape.

        Args:
          rows: of this process, [A, B, ...].
          schedule_args: the schedule's arguments after the step.
          account: charged for compiling.
        """
        batch = to_global(self._run.mesh, rows, leading=1)
        shape = tuple(part.shape for part in batch.values())
        if shape not in self._compiled:
            with account.paused("compile"), refused_options(self._run.config.xla.flags):
                arguments = (self.state, batch, *schedule_args)
                self._compiled[shape] = compile_step(self._train_step, arguments, self._peak, self._run.log)
                exchange.wait_for_all("step compiled")  # longer than a collective would wait (gloo: 30 s)
        compiled = self._compiled[shape]
        return batch, lambda state: compiled(state, batch, *schedule_args, peak=self._peak)

    def clear_window(self) -> None:
        """Begin a new window of metrics."""
        self.state["window"] = self._make_window()

    def take_best(self) -> None:
        """Replace the state by that of the best checkpoint, if there is one and it is not the current step's."""
        if self.checkpoints.best_step not in (None, self.step):
            self.state = {}
            best = self.checkpoints.resume_best(self._restore, self._run.log)
            assert best is not None
            self.state = best

    def _restore(self, step: int) -> State:
        return self.checkpoints.restore(self._shapes, self._shardings, step)

    def _read(self, step: int) -> State:
        check_corpus(self.checkpoints, self._run.corpus.digest, step)
        state = self._restore(step)
        check_weights(self.checkpoints.directory, step, state)
        return state

    def _initial_state(self) -> State:
        """Make the state of random parameters, or of those of the run's model directory."""
        seed, init = self._run.config.seed, self._run.init
        if init is None:
            return self._make_state(np.uint32(seed))
        params, notes = init.load(self._run.mesh, seed)
        self._run.log("\n".join([f"parameters of {init.directory}", *notes]))
        return self._make_state(np.uint32(seed), params)


def compile_step(train_step: Any, arguments: tuple[Any, ...], peak: jax.Array, log: RunLogger) -> Any:
    """Compile the step for arguments of these shapes, and log the time."""
    begin = time.perf_counter()
    compiled = train_step.lower(*arguments, peak=peak).compile()
    log(f"step compiled in {time.perf_counter() - begin:.1f} s")
    return compiled


def checkpoint_files(run: RunSetup) -> dict[str, bytes]:
    """Make the files that every checkpoint stores next to the arrays."""
    config, corpus, arch, head = run.config, run.corpus, run.definition.arch, run.definition.head.name
    tokens = native_checkpoint.tokens_of(corpus.tokenizer, arch, head, run.trainable.pretraining)
    if (start := run.trainable.start_token()) is not None:
        tokens["decoder_start_token_id"] = start
    base = run.init.config if run.init else None
    model = native_checkpoint.describe(run.definition, config.model.family, base, tokens)
    return {
        **corpus.tokenizer.files,
        **run.trainable.checkpoint_files(model, arch),
        native_checkpoint.MODEL: (json.dumps(model, indent=1) + "\n").encode(),
        "config.json": config_lib.dumps(config).encode(),
        "corpus.json": json.dumps({"digest": corpus.digest}).encode(),
    }


def check_corpus(checkpoints: Checkpoints, digest: str, step: int) -> None:
    """Raise a CheckpointError if the text or tokenizer has changed since the run read it."""
    before = json.loads(checkpoints.read_file("corpus.json", step))["digest"]
    if before != digest:
        raise CheckpointError(
            f"{checkpoints.directory}: the run was trained on a corpus with digest {before}, but the text or tokenizer that "
            f"its config names now has digest {digest}: a file has changed since. Restore it, or start in a new "
            "--workdir."
        )
