"""Pairs, conversations and windows of questions that share rows: the loss and gradient of rows of their own, and no leak."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from helpers.train_helpers import ROOT
from lm_research import tasks
from lm_research.config import Config, loading, replace, resolve
from lm_research.data.sampler import BatchBuilder
from lm_research.models.definition import ModelDefinition
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.rows import SharedRows, why_alone

WORDS = "a b c d e f g h i j".split()
SIZE = 64
# Biases by distance, learned positions, sinusoids; rotary and learned; learned, after padding's, and disentangled.
CASES = [
    ("seq2seq", "t5"),
    ("seq2seq", "bart"),
    ("seq2seq", "transformer"),
    ("instruction", "gpt2"),
    ("instruction", "llama"),
    ("question_answering", "bert"),
    ("question_answering", "roberta"),
    ("question_answering", "deberta_v2"),
]
# BERT shares rows in test_shared_rows.py too; BART's positions are those of GPT-2 on both sides.
SLOW = dict.fromkeys([("seq2seq", "bart"), ("question_answering", "bert")], pytest.mark.slow)


def records(task: str, count: int) -> list[dict[str, Any]]:
    """Short texts, and one question in four whose context needs several windows."""
    generator, rows = np.random.default_rng(0), []

    def words(low: int, high: int) -> str:
        return " ".join(WORDS[i] for i in generator.integers(0, len(WORDS), generator.integers(low, high)))

    for number in range(count):
        if task == "seq2seq":
            rows.append({"source": words(2, 9), "target": words(2, 9)})
        elif task == "instruction":
            rows.append({"prompt": words(1, 6), "completion": words(1, 6)})
        else:
            context = words(40, 60) if number % 4 == 0 else words(4, 9)
            start = 2 * int(generator.integers(0, len(context) // 2))
            found = (
                {"text": [context[start]], "answer_start": [start]} if number % 3 else {"text": [], "answer_start": []}
            )
            rows.append({"id": str(number), "context": context, "question": words(1, 4), "answers": found})
    return rows


def make(folder: pathlib.Path, task: str, family: str, packing: bool, **sections: Any) -> tuple[Config, Any]:
    """A config and its data set."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(names))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in records(task, 40)))
    model = dict(family=family, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, max_length=128)
    config = replace(
        resolve(loading.load(f"{ROOT}/configs/finetune/{task}.py")),
        task={"train": str(file), "validation": str(file)},
        tokenizer={"path": str(folder)},
        data={"max_length": 32, "packing": packing},
        model=model | {"dropout_rate": 0.0, "attention_dropout_rate": 0.0} | sections.pop("model", {}),
        train={"batch_size": 16},
        **sections,
    )
    changes = {"task": {"doc_stride": 4}} if task == "question_answering" else {"objective": {"target_length": 31}}
    config = replace(config, **changes)
    return config, open_labeled(config, folder / "run", TASKS[task].reader(config), lambda line: None)


def setting(folder: pathlib.Path, task: str, family: str, packing: bool) -> tuple[Any, Any, ModelDefinition]:
    """The task, its data, and a model whose parameters are far from initial ones."""
    config, corpus = make(folder, task, family, packing)
    definition = tasks.define(config, SIZE, corpus)
    return tasks.build(config, corpus, definition.arch), corpus, definition


def batch_of(task: Any, corpus: Any, step: int = 1) -> dict[str, Any]:
    return BatchBuilder(task.examples(corpus.train, "train"), 16, 0, slice(None), 3)(step)


def loss_and_gradient(task: Any, definition: ModelDefinition, batch: dict[str, Any], params: Any) -> tuple[Any, Any]:
    objective = task.objective

    def loss(params: Any, batch: Any) -> jax.Array:
        return objective.loss(objective.metric_sums(definition.bind(params), batch, None), objective.normalizers(batch))

    with jax.default_matmul_precision("float32"):
        return tiny.jit(jax.value_and_grad(loss))(params, jax.tree.map(jnp.asarray, batch))


@pytest.mark.parametrize(("name", "family"), [pytest.param(*case, marks=SLOW.get(case, ())) for case in CASES])
def test_loss_and_gradient_are_those_of_separate_rows(name: str, family: str, tmp_path: pathlib.Path) -> None:
    task, corpus, definition = setting(tmp_path, name, family, False)
    params, alone = tiny.random_params(definition), batch_of(task, corpus)
    packed, packed_corpus, _ = setting(tmp_path, name, family, True)
    shared = batch_of(packed, packed_corpus)
    assert shared["tokens_BL"].shape[0] <= alone["tokens_BL"].shape[0] * 3 // 4
    for key, total in task.objective.normalizers(alone).items():
        assert total == packed.objective.normalizers(shared)[key] > 0
    own, together = (loss_and_gradient(task, definition, batch, params) for batch in (alone, shared))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own, together)


@pytest.mark.parametrize(("name", "family"), [CASES[0], CASES[3], CASES[5]])
def test_records_of_a_row_do_not_see_one_another(name: str, family: str, tmp_path: pathlib.Path) -> None:
    """The loss and gradient of the second record of each row, whatever the tokens of the others are."""
    task, corpus, definition = setting(tmp_path, name, family, True)
    batch, params = batch_of(task, corpus), tiny.random_params(definition)
    if name == "question_answering":
        batch["row_weights_BK"][:, [0, *range(2, batch["row_weights_BK"].shape[1])]] = 0
    else:
        batch["weights_BL"] = batch["weights_BL"] * (batch["segments_BL"] == 2)
    changed = dict(batch)
    for prefix, axes in (("", "BL"), ("source_", "BS")):
        if f"{prefix}tokens_{axes}" in batch:
            tokens, others = batch[f"{prefix}tokens_{axes}"], ~np.isin(batch[f"{prefix}segments_{axes}"], (0, 2))
            assert others.any()
            changed[f"{prefix}tokens_{axes}"] = np.where(others, 5 + (tokens + 3) % 10, tokens)
    first, second = (loss_and_gradient(task, definition, one, params) for one in (batch, changed))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # It can fail: records that see one another have another loss.
    mixed = {key: np.minimum(x, 1) if "segments" in key else x for key, x in changed.items()}
    if name == "question_answering":
        logits = task.objective.logits(definition.bind(params), mixed, None)
        other = task.objective.logit_sums(logits, batch)["span_loss_nats"] / batch["row_weights_BK"].sum()
    else:
        other = loss_and_gradient(task, definition, mixed, params)[0]
    assert abs(float(other) - float(first[0])) > 1e-4


def test_pairs_keep_their_tokens_and_sides(tmp_path: pathlib.Path) -> None:
    """Every pair of a batch is in one row, once, with both sides and its positions counted from 0."""
    task, corpus, _ = setting(tmp_path, "seq2seq", "t5", False)
    packed, packed_corpus, _ = setting(tmp_path, "seq2seq", "t5", True)
    for step in range(3):
        found = []
        for batch in (batch_of(task, corpus, step), batch_of(packed, packed_corpus, step)):
            pairs = []
            for row in range(len(batch["tokens_BL"])):
                for number in range(1, batch["segments_BL"][row].max() + 1):
                    own = [batch[name][row] == number for name in ("source_segments_BS", "segments_BL")]
                    names = ("source_tokens_BS", "tokens_BL"), ("targets_BL", "weights_BL")
                    sides = [batch[name][row][at].tolist() for name, at in zip(names[0], own, strict=True)]
                    pairs.append((*sides, *(batch[name][row][own[1]].tolist() for name in names[1])))
                    if "positions_BL" in batch:
                        assert (batch["positions_BL"][row][own[1]] == np.arange(own[1].sum())).all()
                        assert (batch["source_positions_BS"][row][own[0]] == np.arange(own[0].sum())).all()
            found.append(sorted(pairs))
        assert found[0] == found[1] and len(found[0]) == 16


@pytest.mark.parametrize("name", ["seq2seq", "instruction", "question_answering"])
def test_held_out_records_have_rows_of_their_own(name: str, tmp_path: pathlib.Path) -> None:
    task, corpus, _ = setting(tmp_path, name, dict(CASES)[name], True)
    assert isinstance(task.examples(corpus.train, "train"), SharedRows)
    for purpose in ("validation", "final"):
        rows = task.examples(corpus.validation, purpose)
        assert not isinstance(rows, SharedRows)
        assert rows.batch(np.zeros(3, int), np.arange(3))["segments_BL"].max() == 1


@pytest.mark.parametrize(("family", "reason"), [("convbert", "convolutions"), ("big_bird", "blocks")])
def test_models_that_cannot_share_rows_keep_them_apart(family: str, reason: str, tmp_path: pathlib.Path) -> None:
    task, corpus, definition = setting(tmp_path, "question_answering", family, True)
    assert reason in why_alone(definition.arch)
    assert batch_of(task, corpus)["tokens_BL"].shape[0] == 16


def test_batches_of_a_run_have_few_shapes(tmp_path: pathlib.Path) -> None:
    """Of 16 pairs: two numbers of rows, and only if sampling missed one, the next of 1, 2, 3, 4, 6, 8, ..."""
    task, corpus, _ = setting(tmp_path, "seq2seq", "t5", True)
    rows = [batch_of(task, corpus, step)["tokens_BL"].shape[0] for step in range(40)]
    usual = task.examples(corpus.train, "train").row_counts(16, 1)
    assert len(usual) <= 2 and set(rows) <= {*usual, 12, 16}
    assert np.isin(rows, usual).mean() > 0.9
