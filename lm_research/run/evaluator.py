"""Evaluations of a run: when they are due, what they write, and the ranks of the models so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.data.loader import load
from lm_research.data.sampler import BatchBuilder, Examples
from lm_research.data.store import TokenStore
from lm_research.decoding.preview import make_preview
from lm_research.objectives.base import Outputs
from lm_research.parallel.batches import local_rows
from lm_research.parallel.exchange import sum_over_processes
from lm_research.run.callbacks import every
from lm_research.run.metrics_log import MetricsWriter
from lm_research.run.setup import RunSetup
from lm_research.training.eval_loop import count_targets, evaluate, training_frequencies, unigram_loss
from lm_research.training.state import State, averaged_params
from lm_research.training.step import make_eval_step

_SAMPLED = 2048  # training rows in which predicted special tokens are counted
_CHUNK = 128  # rows of them made at once


class Evaluator:
    """Evaluates the held-out loss, the unigram baseline, and samples to read."""

    def __init__(self, run: RunSetup, writer: MetricsWriter, lines: Sequence[Mapping[str, float]]) -> None:
        """Prepare evaluations; those in `lines`, the lines of metrics.jsonl so far, count for patience."""
        self.config, self.trainable, self.mesh, self.writer = run.config, run.trainable, run.mesh, writer
        self.log, self.patience = run.log, (run.config.task and run.config.task.patience) or 0
        self.definition, self.corpus, corpus = run.definition, run.corpus, run.corpus
        self.feed, self.num_batches = self._feed(corpus.validation)
        self.step = make_eval_step(
            run.trainable, run.definition, corpus.tokenizer.token_bytes, run.mesh, run.compiler_options
        )
        self.preview = make_preview(run.config, run.definition, corpus)
        # Step, scores and outputs of the last evaluation, if it read the whole held-out part.
        self._last: tuple[int, dict[str, float], list[Outputs]] | None = None
        self.unigram_nats = self._unigram_nats(run.examples) if run.objective.token_loss_name else None
        self.ranks = [run.trainable.rank(line) for line in lines if "eval_loss_nats" in line]
        if self.exhausted:
            self.log(
                f"held-out: no better for task.patience={self.patience} evaluations, so the run has ended; with more patience it continues"
            )
        self.sources = {name: self._feed(corpus.validation.source(name)) for name in corpus.validation.source_names}

    def _unigram_nats(self, examples: Examples) -> float:
        """Compute the baseline: the loss of the training targets' frequencies on the evaluation's targets, equal in all processes."""
        tokenizer = self.corpus.tokenizer
        index = np.unique(np.linspace(0, examples.num_examples - 1, _SAMPLED).astype(np.int64))
        parts = (index[start : start + _CHUNK] for start in range(0, len(index), _CHUNK))
        sample_V = count_targets((examples.batch(np.zeros_like(part), part) for part in parts), tokenizer.size)
        text_V = self.trainable.target_counts(self.corpus.train)
        local_V = count_targets(map(self.feed, range(self.num_batches)), tokenizer.size)
        held_V = sum_over_processes(local_V, "held-out targets")
        return unigram_loss(training_frequencies(text_V, sample_V, tokenizer.special_ids), held_V)

    def _feed(self, store: TokenStore) -> tuple[BatchBuilder, int]:
        """Make the batches of a held-out store, and count those that an evaluation reads."""
        examples, size = self.trainable.examples(store, "validation"), self.config.train.batch_size
        num_batches = ceil_div(examples.num_examples, size)
        if self.config.eval.num_batches:
            num_batches = min(num_batches, self.config.eval.num_batches)
        return self._in_order(examples, store), num_batches

    def _in_order(self, examples: Examples, store: TokenStore) -> BatchBuilder:
        size, rows = self.config.train.batch_size, self.definition.arch.vocab_size
        return BatchBuilder(examples, size, 0, local_rows(self.mesh, size), None, vocab_size=rows, store=store.path)

    def rank(self, scores: Mapping[str, float] | None) -> float | None:
        """Rank a model by its scores, smaller is better: the loss, or a task's metric."""
        return None if scores is None else self.trainable.rank(scores)

    @property
    def exhausted(self) -> bool:
        """Whether the last task.patience evaluations were no better than the best before them."""
        return 0 < self.patience < len(self.ranks) and min(self.ranks[-self.patience :]) >= min(
            self.ranks[: -self.patience]
        )

    def part(self, state: State, store: TokenStore) -> tuple[dict[str, float], list[Outputs]]:
        """Return scores and outputs of a whole store at the end of a run: those of the last evaluation if it was of this state and store."""
        if self._last is not None and self._last[0] == int(state["step"]) and store is self.corpus.validation:
            return self._last[1:]
        examples, size = self.trainable.examples(store, "final"), self.config.train.batch_size
        outputs: list[Outputs] = []
        feed = self._in_order(examples, store)
        batches = load(feed, 0, ceil_div(examples.num_examples, size))
        return evaluate(self.step, averaged_params(state), batches, self.trainable, self.mesh, outputs), outputs

    def due(self, step: int) -> bool:
        """Check whether an evaluation is due before the end."""
        return every(self.config.eval.every_steps, step)

    def run(self, step: int, state: State) -> dict[str, float]:
        """Evaluate the parameters (their average, if there is one); write, print and return the metrics."""
        begin = time.perf_counter()
        params = averaged_params(state)
        outputs: list[Outputs] = []
        scores = evaluate(self.step, params, load(self.feed, 0, self.num_batches), self.trainable, self.mesh, outputs)
        whole = self.num_batches * self.config.train.batch_size >= self.feed.examples.num_examples
        self._last = (step, dict(scores), outputs) if whole and not self.trainable.evaluates_more_at_end else None
        for name, (feed, num_batches) in self.sources.items():  # each source of a mixture separately
            part = evaluate(self.step, params, load(feed, 0, num_batches), self.trainable, self.mesh)
            scores |= {
                f"eval_{name}_{key}": part[f"eval_{key}"] for key in ("loss_nats", "perplexity", "bits_per_byte")
            }
        texts = self.trainable.samples(outputs, self.config.eval.num_samples) or self.preview(params, step)
        self.writer.write(step, {**scores, "eval_seconds": round(time.perf_counter() - begin, 3)})
        self.writer.write_text(step, "samples", "\n\n".join(texts))
        parts = [f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}" for name, value in scores.items()]
        yardstick = f"unigram: {self.unigram_nats:.4g} nats" if self.unigram_nats else self.trainable.baseline()
        self.log(f"held-out after step {step}: {', '.join(parts)} ({yardstick})")
        self.ranks.append(self.trainable.rank(scores))
        for text in texts:
            self.log("  | " + text.strip().replace("\n", "\n  | "))
        return scores
