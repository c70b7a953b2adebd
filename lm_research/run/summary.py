"""The end of a run: summary.json, a fine-tuned model's directory and predictions, and the final message."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax

from lm_research.common.disk import write_atomically
from lm_research.config import Config, tracker_names
from lm_research.models.adapters import merged
from lm_research.models.digest import digest_of
from lm_research.run.evaluator import Evaluator
from lm_research.run.init_checkpoint import InitCheckpoint
from lm_research.run.metrics_log import read_metrics
from lm_research.tasks import export
from lm_research.tasks.base import Task
from lm_research.tasks.dataset import LabeledCorpus
from lm_research.training.state import State, averaged_params


def summarize(
    state: State,
    workdir: pathlib.Path,
    status: str,
    unigram_nats: float | None,
    seconds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Write summary.json: status, steps, last metrics, digests of the state, the use of time."""
    lines = read_metrics(workdir / "metrics.jsonl")

    def last(name: str) -> dict[str, Any]:
        return next((line for line in reversed(lines) if name in line), {})

    names = [name for name in ("params", "optimizer", "ema") if name in state]
    summary = {
        "status": status,
        "step": int(state["step"]),
        "train": last("loss_nats"),
        "eval": last("eval_loss_nats"),
        "unigram_loss_nats": unigram_nats,
        "digests": {{"params": "parameters"}.get(name, name): digest_of(state[name]) for name in names},
        "seconds": seconds,
    }
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def export_best_model(
    evaluator: Evaluator, state: State, init: InitCheckpoint | None, workdir: pathlib.Path
) -> tuple[dict[str, Any], str]:
    """Export the best model of a fine-tuning run to WORKDIR/model, write its predictions, and add its scores to summary.json.

    Returns:
      The entries added to summary.json, and a description of the validation scores.
    """
    task, corpus = evaluator.trainable, evaluator.corpus
    assert isinstance(task, Task) and isinstance(corpus, LabeledCorpus)
    found: dict[str, Any] = {"best_step": int(state["step"])}
    for part, store in (("validation", corpus.validation), ("test", corpus.test)):
        if store is not None:
            found[part], outputs = evaluator.part(state, store)
            if jax.process_index() == 0 and task.has_predictions:
                export.write_predictions(workdir / f"predictions_{part}.jsonl", task, part, outputs)
    if jax.process_count() == 1:  # with several, none has all parameters: `convert` exports the checkpoint later
        family, config = (init.family, init.config) if init else (evaluator.config.model.family, None)
        definition, params = merged(evaluator.definition, averaged_params(state))
        export.export(workdir / "model", definition, family, params, config, task, evaluator.config.plugins)
    if jax.process_index() == 0:
        summary = json.loads((workdir / "summary.json").read_text()) | found
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return found, task.summarize(found["validation"])


def final_message(config: Config, workdir: pathlib.Path, summary: dict[str, Any], task_scores: str = "") -> str:
    """Compose the last lines of a run; `task_scores` describes those of a task's validation."""
    if summary["status"] == "paused":
        return f"paused after step {summary['step']} (train.stop_after); the same command with a later one resumes from there."
    if summary["status"] != "finished":
        return f"stopped by a signal after step {summary['step']}; everything is saved, and the same command resumes from there."
    if task_scores:
        test = "".join(
            f"\ntest: {name.removeprefix('eval_')} {value:.4g}" for name, value in summary.get("test", {}).items()
        )
        return f"""
finished: best after step {summary["best_step"]}, {task_scores}{test}
next:
  use       lm_research.from_pretrained("{workdir}/model")
  read      {workdir}/predictions_validation.jsonl
  compare   python -m lm_research.compare {workdir} runs/OTHER"""
    scores, unigram = summary["eval"], summary["unigram_loss_nats"]
    term = "eval_lm_loss_nats" if "eval_lm_loss_nats" in scores else "eval_mlm_loss_nats"
    longer = (
        "train.budget" if config.train.budget else "train.num_epochs" if config.train.num_epochs else "train.num_steps"
    )
    look = f"\n  look      tensorboard --logdir={workdir}" if "tensorboard" in tracker_names(config) else ""
    held_out = "its last evaluation is missing from metrics.jsonl"
    if term in scores and "eval_perplexity" in scores:
        held_out = f"{scores[term]:.3f} nats a token against {unigram:.3f} of unigram frequencies; perplexity {scores['eval_perplexity']:.1f}"
    return f"""
finished: {summary["step"]} steps, parameters {summary["digests"]["parameters"]}
held-out: {held_out}
next:{look}
  longer    the same command with a larger --config.{longer}
  your text --config.data.source=FILE_OR_FOLDER --workdir=runs/mine
  compare   python -m lm_research.compare {workdir} runs/OTHER"""
