"""`python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart`

One training run, top to bottom: directory, corpus, model, state, restore, loop, summary. The same command starts a
run, goes on with one that was stopped, and says so when it is done.

The order inside the loop never changes: evaluate, save, stop?, next batch, step, write. So a saved state, the
batch that comes after it and the lines of metrics before it always belong together.
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come while the libraries below are read
    from lm_research.common import interrupts

    interrupts.watch("before the first step", "goes on from there")

import contextlib
import itertools
import json
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research import cli, tasks
from lm_research import config as config_lib
from lm_research.common import interrupts
from lm_research.common.disk import keeping, whole
from lm_research.config import Config
from lm_research.data.corpus import Corpus
from lm_research.data.loader import load
from lm_research.data.mixture import mix
from lm_research.data.order import Examples, Feed, Groups, lengths_of
from lm_research.data.verify import Verification
from lm_research.errors import DONE, STOPPED_BY_SIGNAL, CheckpointError, DataError, NonFiniteLoss, TokenizerError
from lm_research.interop import native_checkpoint
from lm_research.models.adapters import adapt, adapters_of
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import VOCAB_MULTIPLE, define_model, table_rows
from lm_research.objectives.base import Objective
from lm_research.objectives.encoder_decoder import start_role
from lm_research.parallel import processes
from lm_research.parallel.batches import check_batch, local_rows, settle_batch, to_global
from lm_research.parallel.host import give_simulated_devices_threads, keep_freed_memory
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import RULES, replicated
from lm_research.run import budget, longer, run_directory
from lm_research.run.budget import Course
from lm_research.run.checkpoint import Checkpoints, safe
from lm_research.run.goodput import Clock, Lives, birth, in_words
from lm_research.run.held_out import Evaluation
from lm_research.run.init_from import StartingPoint, find_origin, follow
from lm_research.run.meter import Meter, step_size
from lm_research.run.metrics import MetricsWriter, find_gaps, read_metrics
from lm_research.run.pace import Pace
from lm_research.run.progress import Log, Progress, Trace, every
from lm_research.run.recheck import Recheck
from lm_research.run.signals import StopRequest
from lm_research.run.summary import closing_words, deliver, summarise
from lm_research.run.trackers import check_installed
from lm_research.tasks import delivery
from lm_research.tasks.base import Task
from lm_research.training.groups import make_groups
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import State, check_room, init_state, state_shardings, window_zeros
from lm_research.training.step import jit_train_step, make_train_step
from lm_research.trees import flatten, unflatten


def main(config: Config, workdir: pathlib.Path) -> int:
    """The verb; returns the exit code."""
    keep_freed_memory()
    give_simulated_devices_threads()
    with processes.joined(workdir) as is_main, keeping(lambda: safe(workdir / "checkpoints"), workdir):
        with run_directory.lock(workdir) if is_main else contextlib.nullcontext():  # until it ends, however it ends
            with contextlib.ExitStack() as ends:
                return run(config, workdir, ends)


def run(config: Config, workdir: pathlib.Path, ends: contextlib.ExitStack) -> int:
    """One run; what is to be ended with it, whatever happens, goes into `ends`."""
    born = birth()
    # ---------------------------------------------------------------- directory and devices
    origin = find_origin(config)
    config = follow(origin, config)
    mesh = make_mesh(config.mesh)
    config = settle_batch(config, mesh.size)
    run_directory.check_config(workdir, config)
    check_batch(mesh, config.train.batch_size, config.train.accumulation_steps, config.data.max_length)
    kind = tasks.asked(config)  # and whether it fits the model, before a corpus is built for nothing
    tasks.check(config, origin.definition.arch if origin else define_model(config.model, VOCAB_MULTIPLE).arch)
    jax.set_mesh(mesh)
    use_compilation_cache()
    if config.model.dtype == "float32":  # and not the shortened products that TPUs and GPUs make of it by default
        jax.config.update("jax_default_matmul_precision", "float32")
    is_main = jax.process_index() == 0
    if is_main:
        check_installed(config_lib.tracker_names(config))
    log = Log(workdir, is_main, processes.log_name(jax.process_index()))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    log(f"run: {workdir} on {jax.device_count()} x {jax.devices()[0].device_kind}" + (f" ({shape})" if shape else ""))

    # ---------------------------------------------------------------- corpus, model, objective
    with processes.process_0_first("corpus"):
        corpus = kind.open_corpus(config, workdir, log)
    verification = ends.enter_context(Verification(corpus.stores, config.data.verify, log))
    vocab_size = pick_vocab_size(config, corpus)
    origin = find_origin(config, corpus) if config.task.name else origin  # now that the labels are known
    definition = adapt(origin.definition if origin else tasks.define(config, vocab_size, corpus), config.lora)
    objective = tasks.make(config, corpus, definition.arch)
    make_examples = lambda store: objective.examples(store, "train")  # noqa: E731
    examples = mix(config.data, corpus.train, config.train.batch_size, make_examples)
    config = settle_steps(config, examples.num_examples)
    config = budget.settle(config, *step_size(config, objective, definition, examples))
    log(describe(config, definition, examples))

    # ---------------------------------------------------------------- state and step
    optimizer, schedule = make_optimizer(config.optimizer), make_schedule(config)
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    shardings = state_shardings(mesh, definition, shapes, config.mesh)
    check_room(shapes, shardings)
    new_state = jax.jit(
        lambda seed: init_state(definition, optimizer, config, objective, seed), out_shardings=shardings
    )
    new_window = jax.jit(lambda: window_zeros(objective), out_shardings=shardings["window"])
    train_step = jit_train_step(make_train_step(objective, definition, optimizer, schedule, config), shardings)

    # ---------------------------------------------------------------- restore, or begin
    files = checkpoint_files(config, corpus, definition, origin, objective)
    checkpoints = ends.enter_context(Checkpoints(workdir, config.checkpoint, files))

    def read(step: int) -> State:
        check_corpus(checkpoints, corpus, step)
        state = checkpoints.restore(shapes, shardings, step)
        checkpoints.check_weights(state, step)
        return state

    def begin() -> State:
        state = checkpoints.resume(read, log)
        if state is None:
            state = new_state(np.uint32(config.seed))
            return start_from(origin, state, shardings, mesh, log) if origin else state
        log(f"resuming after step {int(state['step'])}")
        return state

    state = begin()
    start = int(state["step"])
    if verification.background:
        checkpoints.trust(start)
    longer.check(workdir, config, start)
    if is_main:
        changed = run_directory.store_config(workdir, config)
        run_directory.record_environment(workdir, definition.num_params, changed)
        if words := longer.in_words(config, changed, start):
            log(words)
    trackers, shown = config_lib.tracker_names(config), config_lib.to_dict(config)
    writer = MetricsWriter(workdir, trackers, start, is_main, shown, log)

    # ---------------------------------------------------------------- batches, evaluation, what people see
    feed = make_feed(config, mesh, examples, definition.arch.vocab_size, corpus.train.path)
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] <= start]
    gaps = find_gaps(lines, start, config.logging.every_steps, checkpoints.lines(start) if start else None)
    if gaps:
        log(gaps)
    history = [line for line in lines if "eval_loss_nats" in line]
    evaluation = Evaluation(config, objective, definition, corpus, mesh, writer, log, history, examples)
    clock = Clock(born)
    lives = Lives(workdir, clock, start, is_main)
    if start and not lives.known:
        log("WARNING: time.json is missing or damaged: the time of the steps up to here counts for nothing.")
    untold = gaps and start - max((line["step"] for line in lines), default=0) >= config.logging.every_steps
    meter = Meter(config, objective, definition, examples, start, log, clock, None if untold else lines)

    # ---------------------------------------------------------------- how far
    programs: dict[tuple[tuple[int, ...], ...], Any] = {}

    def prepared(state: State, batch: dict[str, np.ndarray]) -> tuple[Any, dict[str, jax.Array]]:
        """The program of a batch, compiled once a shape, and the batch on the devices."""
        batch = to_global(mesh, batch, leading=1)
        shape = tuple(rows.shape for rows in batch.values())  # of a task's rows it goes with the batch
        if shape not in programs:
            with clock.paused("compile"):
                programs[shape] = compile_step(train_step, state, batch, course, peak, log)
                processes.wait_for_all("step compiled")  # longer than a collective would wait (gloo: 30 s)
        return programs[shape], batch

    peak = jax.device_put(np.float32(config.optimizer.learning_rate), replicated(mesh))
    course = budget.make_course(config, workdir, start, clock, lives, replicated(mesh), log)
    if course.unknown:  # steps that do not count, on a state that is thrown away
        rehearsal = load(feed, start, course.last)

        def take() -> jax.Array:
            nonlocal state
            program, batch = prepared(state, next(rehearsal))
            state = program(state, batch, *course.arguments, peak=peak)
            return state["step"]

        course.calibrate(take, evaluation.num_batches)
        rehearsal.close()
        state = None  # frees it: there may be no room for two
        state = begin()
    batches = load(feed, start, course.last, config.data.num_workers)
    progress, trace = Progress(start, course.end, log, is_main), Trace(config_lib.profile_range(config), workdir)
    recheck = Recheck(config, objective, definition, mesh, workdir, checkpoints, start, log)
    pause = config.train.stop_after or course.last
    if start < min(course.end, pause):
        prepared(state, feed(start))  # compiled while a signal still ends the run at once

    # ---------------------------------------------------------------- the loop
    pace = Pace(start)
    saved_at = time.monotonic()
    with writer, StopRequest() as stop_request:
        for step in itertools.count(start):
            progress.reach(pace.wait())
            # What a restored step was due, it got before it was saved.
            fresh, scores, there = step > start or start == 0, None, step >= min(course.end, pause)
            if fresh and (evaluation.due(step) or there):
                raise_if_halted(state, feed, workdir, checkpoints)  # waits for the steps under way: they are no pause
                with clock.paused("eval"):
                    scores = evaluation.run(step, state)
            finished = there or evaluation.exhausted
            if finished:
                verification.wait()
            processes.watch_step()
            stopping = stop_request.at(step)  # asked once, so that nothing leaves without saving
            due = every(config.checkpoint.every_steps, step) or finished or stopping
            if verification.background and (due or every(config.logging.every_steps, step)):
                raise_if_damaged(verification, checkpoints)
            if fresh and (due or overdue(config, step, saved_at)):
                raise_if_halted(state, feed, workdir, checkpoints)
                with clock.paused("checkpoint"):
                    checkpoints.save(state, scores, evaluation.rank(scores), writer.lines)
                lives.write(step)
                saved_at = time.monotonic()
            if finished or stopping:
                break
            with clock.waiting(idle=state["step"].is_ready()):
                batch = next(batches)
            program, batch = prepared(state, batch)
            if recheck.due(step + 1):
                jax.block_until_ready(state)
                with clock.paused("check"):
                    state, rehearsed = recheck.before(step + 1, program, state, batch, *course.arguments, peak=peak)
            trace.before(step + 1)
            state = program(state, batch, *course.arguments, peak=peak)
            trace.after(step + 1, state)
            if recheck.due(step + 1):
                jax.block_until_ready(state)
                with clock.paused("check"):
                    recheck.after(step + 1, state, rehearsed)
            pace.began(step + 1, state)
            if every(config.logging.every_steps, step + 1):
                raise_if_halted(state, feed, workdir, checkpoints)
                values = meter.line(step + 1, state, lambda number: schedule(number, *course.numbers))
                state["window"] = new_window()
                writer.write(step + 1, values)
                progress.metrics(step + 1, values)
                lives.write(step + 1, now=False)
            if course.follow(step + 1, state):
                progress.retarget(course.end)
        progress.close(int(state["step"]))
        trace.close()
        batches.close()
        with clock.paused("checkpoint"):
            checkpoints.wait()  # until all is on disk
        interrupts.say("after its last step, with all of them saved")
    lives.write(int(state["step"]))
    seconds = lives.total() if is_main else None

    # ---------------------------------------------------------------- summary
    done = int(state["step"]) == course.end or evaluation.exhausted
    paused = not done and int(state["step"]) >= pause
    status = "finished" if done else "paused" if paused else "stopped"
    summary = summarise(state, workdir, status, evaluation.unigram_nats, seconds)
    if is_main:
        log(f"time: {in_words(seconds)}")
    if done and isinstance(objective, Task):
        best = checkpoints.best_step
        if best not in (None, int(state["step"])):
            del state
            state = checkpoints.resume_best(lambda step: checkpoints.restore(shapes, shardings, step), log)
        summary |= deliver(evaluation, state, origin, workdir)
    checkpoints.close()
    log(closing_words(config, workdir, summary) if is_main else summary["status"])
    return DONE if done or paused else STOPPED_BY_SIGNAL


def overdue(config: Config, step: int, since: float) -> bool:
    """Whether a save is due by the clock; by process 0's, asked where all of them wait for each other anyway."""
    minutes = config.checkpoint.every_minutes
    if not minutes or (jax.process_count() > 1 and not every(config.logging.every_steps, step)):
        return False
    return processes.of_process_0(time.monotonic() - since > 60 * minutes)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs (JAX_COMPILATION_CACHE_DIR moves them; empty turns that off)."""
    home = os.path.expanduser("~")  # which not every user has
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and home != "~":
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, ".cache/lm_research/xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pick_vocab_size(config: Config, corpus: Corpus) -> int:
    """Rows of the token table: as asked, or the tokenizer's size rounded up.

    Raises:
      TokenizerError: the tokenizer has more tokens than the model has rows.
    """
    asked, size = config.model.vocab_size, corpus.tokenizer.size
    if asked and asked < size:
        raise TokenizerError(
            f"The tokenizer has {size} tokens, but config.model.vocab_size={asked} gives the model fewer rows. Set "
            f"--config.model.vocab_size=0 to follow the tokenizer, or use a tokenizer of at most {asked} tokens."
        )
    return table_rows(config.model, size)


def make_feed(config: Config, mesh: jax.sharding.Mesh, examples: Examples, *known: Any) -> Feed:
    """The batches of a run, of which this process makes its rows. `known`: ids that the model has, and the store (see `Feed`)."""
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    grouped = config.data.group_by_length
    groups = Groups(lengths_of(examples), size, config.seed) if grouped else None
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    return Feed(examples, size, accumulation, local_rows(mesh, size // accumulation), config.seed, groups, ways, *known)


def settle_steps(config: Config, num_examples: int) -> Config:
    """Turns train.num_epochs, if given, into train.num_steps."""
    if not config.train.num_epochs:
        return config
    steps = math.ceil(config.train.num_epochs * num_examples / config.train.batch_size)
    return config_lib.replace(config, train={"num_steps": steps})


def describe(config: Config, definition: ModelDefinition, examples: Examples) -> str:
    arch, train = definition.arch, config.train
    passes = train.num_steps * train.batch_size / examples.num_examples
    timed = config_lib.timed(config)
    steps = f"{config.train.budget} of steps" if timed else f"{train.num_steps:,} steps"
    read = "" if timed else f", read {passes:.1f} times"
    learning = make_groups(config, definition.shapes).in_words(definition.shapes)
    learning = f", {learning}" if learning else ""
    return (
        f"model: {config.model.family}, {arch.num_layers} layers x {arch.hidden_size}, vocabulary {arch.vocab_size:,}, "
        f"{definition.num_params:,} parameters, {config.task.name or config.objective.name}{learning}\n"
        f"train: {steps} of {train.batch_size} x {config.data.max_length} tokens; "
        f"{examples.num_examples:,} examples{read}"
        + (f"\nrows: {examples.notes}" if getattr(examples, "notes", "") else "")
    )


def start_from(origin: StartingPoint, state: State, shardings: State, mesh: jax.sharding.Mesh, log: Log) -> State:
    """The first state with the origin's parameters, in its average too."""
    fresh = adapters_of(state.pop("params"))
    params, notes = origin.load(mesh, int(state["seed"]))
    log("\n".join([f"parameters of {origin.directory}", *notes]))
    params = unflatten(flatten(params) | fresh)
    # Copies: a step overwrites its state, which must not lie in memory that somebody else owns.
    copies = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings["params"])
    return state | {name: copies(params) for name in ("params", "ema") if name in shardings}


def checkpoint_files(
    config: Config, corpus: Corpus, definition: ModelDefinition, origin: StartingPoint | None, objective: Objective
) -> dict[str, bytes]:
    """What lies beside the arrays in every checkpoint."""
    task, arch, head = isinstance(objective, Task), definition.arch, definition.head.name
    tokens = native_checkpoint.tokens_of(corpus.tokenizer, arch, head, "" if task else config.objective.name)
    if head == "seq2seq_lm" and not task:
        tokens["decoder_start_token_id"] = corpus.tokenizer.roles[start_role(config)]
    model = native_checkpoint.describe(definition, config.model.family, origin.config if origin else None, tokens)
    return {
        **corpus.tokenizer.files,
        **(delivery.beside(objective, model, arch) if task else {}),
        native_checkpoint.MODEL: (json.dumps(model, indent=1) + "\n").encode(),
        "config.json": config_lib.dumps(config).encode(),
        "corpus.json": json.dumps({"digest": corpus.digest}).encode(),
    }


def check_corpus(checkpoints: Checkpoints, corpus: Corpus, step: int) -> None:
    """Raises a CheckpointError if the run so far read another text or tokenizer than it would read from here on."""
    before = json.loads(checkpoints.read_file("corpus.json", step))["digest"]
    if before != corpus.digest:
        raise CheckpointError(
            f"{checkpoints.directory}: the run was trained on a corpus with digest {before}, but the text or tokenizer that "
            f"its config names now has digest {corpus.digest}: a file has changed since. Restore it, or start in a new "
            "--workdir."
        )


def compile_step(
    train_step: Any, state: State, batch: dict[str, jax.Array], course: Course, peak: jax.Array, log: Log
) -> Any:
    begin = time.perf_counter()
    compiled = train_step.lower(state, batch, *course.arguments, peak=peak).compile()
    log(f"step compiled in {time.perf_counter() - begin:.1f} s")
    return compiled


def raise_if_damaged(verification: Verification, checkpoints: Checkpoints) -> None:
    """Ends the run where the text it reads has turned out to be damaged, in all processes, who must come here together.

    Raises:
      DataError: and what may have been learnt from it is no checkpoint any more.
    """
    damage = verification.damage
    if processes.everywhere(damage is None):
        if processes.everywhere(not verification.pending):
            checkpoints.trust_all()
        return
    words = str(damage or "Another process has found damage in its token store; its log has the words.")
    raise DataError(f"{words} {checkpoints.distrust()}")


def raise_if_halted(state: State, feed: Feed, workdir: pathlib.Path, checkpoints: Checkpoints) -> None:
    """Ends the run at a loss that was not finite: saves the state from before it and the batch that caused it.

    Raises:
      NonFiniteLoss: with the step and where things were saved.
    """
    step = int(state["halted"])
    if step < 0:
        return
    own = f"_process_{jax.process_index()}" if jax.process_index() else ""  # each holds its own rows
    path = workdir / "nonfinite" / f"step_{step + 1}{own}.npz"
    path.parent.mkdir(exist_ok=True)
    with whole(path) as file:
        np.savez(file, **feed(step))
    checkpoints.save(state)
    checkpoints.close()
    summarise(state, workdir, "nonfinite", None)
    raise NonFiniteLoss(
        f"Step {step + 1} has a NaN or infinite loss or gradient. The state before it is saved as checkpoint {step}, its batch "
        f"in {path}. Lower optimizer.learning_rate or lengthen the warm-up in a new --workdir, or go on without such updates by "
        "--config.train.nonfinite=skip."
    )


if __name__ == "__main__":
    cli.run(main, verb="train", summary="Pre-trains a language model on text.")
