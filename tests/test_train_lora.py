"""Runs that train adapters: the base is unchanged, a checkpoint is enough to resume, and readers get the whole model."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.train_helpers import checkpoints, same, summary
from lm_research.trees import flatten

LORA = ("--config.lora.rank=2", "--config.optimizer.learning_rate=0.01", "--config.lora.dropout=0.1")
STEPS = ("--config.train.num_steps=8", "--config.checkpoint.every_steps=4", "--config.eval.every_steps=0")


def params(path: pathlib.Path) -> dict[str, Any]:
    return {name: np.asarray(leaf) for name, leaf in flatten(lm_research.from_pretrained(path).params).items()}


@pytest.fixture(scope="module")
def run(lab: Any, bert_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight steps of adapters on the uninterrupted BERT run; read-only."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    assert lab.train(workdir, f"--config.train.init_from={bert_run}", *LORA, *STEPS) == 0
    return workdir


def test_only_adapted_kernels_differ_from_the_origin(run: pathlib.Path, bert_run: pathlib.Path) -> None:
    """Rank 2 at width 32, query and value of 2 layers: 2 x 2 x 2 x (32 + 32) = 512 numbers are trained. The head is not new."""
    before, after = params(bert_run), params(run)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {f"encoder/layers/attention/{name}/kernel" for name in ("query", "value")}
    for path in changed:
        change = (after[path] - before[path]).reshape(2, 32, 32)
        assert (np.linalg.matrix_rank(change, tol=1e-4 * np.abs(change).max()) == 2).all()
    whole = lm_research.from_pretrained(bert_run).num_params + 512
    assert f"trains 512 of {whole:,} parameters ({512 / whole:.2%})" in (run / "log.txt").read_text()


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    run: pathlib.Path, lab: Any, bert_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """As if killed after its first checkpoint."""
    shutil.copytree(run, tmp_path / "run")
    for step in checkpoints(run)[1:]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    assert checkpoints(tmp_path / "run") == [4]
    assert lab.train(tmp_path / "run", f"--config.train.init_from={bert_run}", *LORA, *STEPS) == 0
    assert same(run, tmp_path / "run")


def test_a_second_run_begins_with_the_sum(run: pathlib.Path, lab: Any, tmp_path: pathlib.Path) -> None:
    """At a learning rate of 0, with new adapters, whose product is 0: the same bits and the same held-out loss."""
    still = ("--config.lora.rank=1", "--config.optimizer.learning_rate=0.0", "--config.train.num_steps=1")
    assert lab.train(tmp_path / "run", f"--config.train.init_from={run}", *still) == 0
    before, after = params(run), params(tmp_path / "run")
    assert all(np.array_equal(before[path], after[path]) for path in before)
    losses = [summary(path)["eval"]["eval_loss_nats"] for path in (run, tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_adapters_without_a_model_are_refused(lab: Any, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert lab.train(tmp_path / "run", *LORA) == 2
    assert "lora.rank=2 trains adapters of an existing model" in capsys.readouterr().err
