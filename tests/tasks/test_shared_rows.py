"""Records that share rows give the same results as in separate rows."""

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
from lm_research.config import Config, loading, replace, resolve
from lm_research.data.sampler import BatchBuilder
from lm_research.errors import ConfigError
from lm_research.models.families import define_model
from lm_research.tasks import TASKS, validate
from lm_research.tasks.dataset import open_labeled
from lm_research.tasks.rows import PackedExamples

WORDS = "a b c d e f g h".split()


def records(count: int, task: str) -> list[dict[str, Any]]:
    """Texts of 1 to 20 words, some of them pairs, and labels."""
    generator, rows = np.random.default_rng(0), []
    for number in range(count):
        text = [WORDS[i] for i in generator.integers(0, 8, generator.integers(1, 21))]
        if task == "tagging":
            rows.append({"tokens": text, "tags": [("O", "B-X")[word < "d"] for word in text]})
        else:
            labels = {
                "label": ("no", "yes", "so")[number % 3],
                "labels": "yes,so" if number % 2 else "no",
                "value": number / 7,
            }
            rows.append({"text": " ".join(text), "pair": " ".join(text[:3]), **labels})
    return rows


def make(tmp_path: pathlib.Path, task: str = "classification", count: int = 40, **changes: Any) -> tuple[Config, Any]:
    """A config and its data set."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in records(count, task)))
    config = resolve(loading.load(f"{ROOT}/configs/finetune/{task}.py"))
    small = dict(
        num_layers=2,
        hidden_size=16,
        num_heads=2,
        intermediate_size=32,
        max_length=64,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    config = replace(
        config,
        task={"train": str(file), "validation": str(file)} | changes,
        tokenizer={"path": str(tmp_path)},
        data={"max_length": 48},
        model=small,
        train={"batch_size": 16},
    )
    return config, open_labeled(config, tmp_path / "run", TASKS[task].reader(config), lambda line: None)


def batches(config: Config, corpus: Any, step: int, **feed: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The task, and the batch of a step with separate rows and with shared ones."""
    found = []
    for packing in (False, True):
        own = replace(config, data={"packing": packing})
        task = TASKS[config.task.name](own, corpus)
        found.append(BatchBuilder(task.examples(corpus.train, "train"), 16, 0, slice(None), 3, **feed)(step))
    return task, found


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # A record's summary is first or last; positions that begin after the padding's, and rotary ones, are also in test_shared_texts.py.
        ("bert", {}),
        ("gpt2", {}),
        *(pytest.param(family, {}, marks=pytest.mark.slow) for family in ("roberta", "llama")),
        ("bert", {"pair_key": "pair"}),
        ("bert", {"problem_type": "multi_label", "label_key": "labels"}),
        ("bert", {"problem_type": "regression", "label_key": "value"}),
        ("bert", {"class_weights": "no=1,yes=2,so=4", "label_smoothing": 0.1}),
    ],
)
def test_loss_and_gradient_are_those_of_separate_rows(
    family: str, changes: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    config, corpus = make(tmp_path, **changes)
    check_gradients(replace(config, model={"family": family}), corpus)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_tags_are_those_of_separate_rows(family: str, tmp_path: pathlib.Path) -> None:
    config, corpus = make(tmp_path, "tagging", text_key="tokens", label_key="tags")
    check_gradients(replace(config, model={"family": family}), corpus)


def check_gradients(config: Config, corpus: Any) -> None:
    task, (alone, shared) = batches(config, corpus, step=1)
    assert shared["tokens_BL"].shape[0] < 0.8 * alone["tokens_BL"].shape[0]
    definition = TASKS[config.task.name].define(config, len(WORDS) + 5, corpus)
    params = tiny.random_params(definition)

    def results(batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        batch = jax.tree.map(jnp.asarray, batch)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            sums = task.objective.metric_sums(definition.bind(params), batch, None)
            return sums[task.objective.loss_terms[0]] / totals[
                task.objective.metrics[task.objective.loss_terms[0]]
            ], sums

        totals = task.objective.normalizers(batch)
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return totals, sums | {"loss": value}, gradient

    def close(a, b):
        return np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)

    program = tiny.jit(results)
    jax.tree.map(close, program(alone), program(shared))


def test_each_record_of_a_batch_has_its_place(tmp_path: pathlib.Path) -> None:
    """Tokens, positions, types and labels, checked record by record against the rows themselves."""
    config, corpus = make(tmp_path, pair_key="pair")
    for step in range(5):
        _, (alone, shared) = batches(config, corpus, step)
        found = []
        for row in range(len(shared["tokens_BL"])):
            for slot in np.flatnonzero(shared["row_weights_BK"][row]):
                own = shared["segments_BL"][row] == slot + 1
                assert (shared["positions_BL"][row][own] == np.arange(own.sum())).all()
                assert (np.diff(np.flatnonzero(own)) == 1).all()
                found.append(
                    (
                        shared["tokens_BL"][row][own].tolist(),
                        shared["types_BL"][row][own].tolist(),
                        int(shared["labels_BK"][row, slot]),
                    )
                )
        expected = []
        for row in range(16):
            own = alone["segments_BL"][row] > 0
            expected.append(
                (
                    alone["tokens_BL"][row][own].tolist(),
                    alone["types_BL"][row][own].tolist(),
                    int(alone["labels_B"][row]),
                )
            )
        assert sorted(found) == sorted(expected)
        assert (shared["segments_BL"] > 0).sum() == (alone["segments_BL"] > 0).sum()


@pytest.mark.parametrize("ways", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_share_the_rows(ways: int, accumulation: int, tmp_path: pathlib.Path) -> None:
    config, corpus = make(tmp_path)
    task = TASKS["classification"](replace(config, data={"packing": True}), corpus)
    rows, micro = task.examples(corpus.train, "train"), 16 // accumulation

    def feed(own):
        return BatchBuilder(rows, 16, accumulation, own, 3, None, ways)(2)

    whole, share = feed(slice(None)), micro // ways
    assert whole["tokens_BL"].shape[1] % ways == 0 and whole["tokens_BL"].shape[:1] == (accumulation,)
    parts = [feed(slice(number * share, (number + 1) * share)) for number in range(ways)]
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis=1), x)
    assert whole["row_weights_BK"].sum() == 16


def test_the_shortest_records_fill_all_slots_and_no_more(tmp_path: pathlib.Path) -> None:
    """One-word texts are three tokens, so ten would fit into a row of 32 (22 is the longest), which has four slots."""
    config, corpus = make(tmp_path)
    rows = TASKS["classification"](replace(config, data={"packing": True}), corpus).examples(corpus.train, "train")
    assert isinstance(rows, PackedExamples) and (rows.max_length, rows.slots) == (32, 4)
    shortest = int(rows.lengths.argmin())
    index = rows.arrange(np.full((1, 16), shortest), 1)
    assert (index >= 0).sum() == 16 and ((index >= 0).sum(-1) == [4] * 4 + [0] * (index.shape[1] - 4)).all()
    assert index.shape == (1, rows.row_counts(16, 1)[0], 4)


def test_held_out_records_have_separate_rows(tmp_path: pathlib.Path) -> None:
    config, corpus = make(tmp_path)
    task = TASKS["classification"](replace(config, data={"packing": True}), corpus)
    assert not isinstance(task.examples(corpus.validation, "validation"), PackedExamples)


def test_tasks_that_cannot_share_rows_refuse() -> None:
    config = resolve(loading.load(f"{ROOT}/configs/finetune/multiple_choice.py"))
    config = replace(config, task={"train": "train.jsonl"}, data={"packing": True})
    with pytest.raises(ConfigError, match="several records into a row, which task multiple_choice cannot read"):
        validate(config, define_model(config.model, 128).arch)
