"""Embeddings: losses and ranks against arithmetic, and a finished run read through every entry point."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from starlette.testclient import TestClient

import lm_research
from helpers.devices import eight_devices
from helpers.train_helpers import ROOT, call, metrics, summary, without_training_of_tokenizers
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.models.forward import l2_normalize
from lm_research.serving.app import make_app
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled

WORDS = "river stone bread water light night sheep field hand heart word law".split()
OTHER = dict(zip(WORDS, "rio piedra pan agua luz noche oveja campo mano corazon palabra ley".split(), strict=True))
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.init_std": 0.1,
    "model.max_length": 32,
    "model.dropout_rate": 0.0,
    "model.attention_dropout_rate": 0.0,
    "data.max_length": 32,
    "tokenizer.type": "wordpiece",
    "tokenizer.vocab_size": 100,
    "optimizer.learning_rate": 1e-2,
    "train.num_epochs": 6,
    "train.batch_size": 16,
    "logging.trackers": "none",
    "logging.every_steps": 5,
}


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Three words, and the same in another language; a negative that has one word of another sentence."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.sample(WORDS, 3)
        wrong = [draw.choice([w for w in WORDS if w not in words]), *words[1:]]
        texts = [" ".join(words), *(" ".join(OTHER[word] for word in some) for some in (words, wrong))]
        rows.append(dict(zip(("text", "pair", "wrong"), texts, strict=True)))
    return rows


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(workdir: pathlib.Path, **keys: Any) -> int:
    flags = [f"--config.{key}={value}" for key, value in (TINY | keys).items()]
    flags = without_training_of_tokenizers(flags)
    return call([f"--config={ROOT}/configs/finetune/embedding.py", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    keys = {"task.train": write(folder / "a.jsonl", pairs(320, 0)), "data.cache_dir": folder / "cache"}
    return keys | {"task.validation": write(folder / "b.jsonl", pairs(37, 1))}


@pytest.fixture(scope="module")
def run(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An uninterrupted run, with the state of the first token; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "pairs"
    assert train(workdir, **files, **{"task.pooling": "cls", "task.negative_key": "wrong"}) == 0
    return workdir


def test_it_learns(run: pathlib.Path) -> None:
    found = summary(run)["validation"]
    assert found["eval_mrr_at_10"] > 0.8  # a random order of 74 candidates: about 0.04
    assert found["eval_contrastive_loss_nats"] < 1.0  # ln 31 is what guessing among 16 pairs and 16 negatives costs
    rows = [json.loads(line) for line in (run / "predictions_validation.jsonl").read_text().splitlines()]
    assert len(rows) == 37 and rows[3]["text"].split("\n")[:2] == [pairs(4, 1)[3][key] for key in ("text", "pair")]
    assert found["eval_recall_at_1"] == pytest.approx(np.mean([row["rank"] == 1 for row in rows]))
    assert metrics(run)[0]["contrastive_loss_nats"] < np.log(32) + 1


@pytest.mark.parametrize("folder", ["", "model"])
def test_every_entry_point_pools_as_the_run_did(run: pathlib.Path, folder: str, tmp_path: pathlib.Path) -> None:
    texts = [row[key] for row in pairs(12, 1) for key in ("text", "pair")]
    rows = [json.loads(line) for line in (run / "predictions_validation.jsonl").read_text().splitlines()]
    lm = lm_research.from_pretrained(run / folder)
    assert lm.embedding.pooling == "cls" and lm.embedding.normalize and lm.embedding.max_length == 32
    vectors = lm.embed(texts)
    np.testing.assert_allclose(vectors, lm.embed(texts, pooling="cls"), atol=1e-7)
    assert np.abs(vectors - lm.embed(texts, pooling="mean")).max() > 0.01
    expected = [row["similarity"] for row in rows[:12]]
    np.testing.assert_allclose((vectors[::2] * vectors[1::2]).sum(1), expected, atol=5e-6)
    similar = lm_research.pipeline("sentence-similarity", model=run / folder)
    found = similar({"source_sentence": texts[0], "sentences": texts[1:4]})
    np.testing.assert_allclose(found, vectors[1:4] @ vectors[0], atol=1e-6)
    for save in (lm.save_pretrained, lm.save_native):
        save(tmp_path / save.__name__)
        assert lm_research.from_pretrained(tmp_path / save.__name__).embedding == lm.embedding
    answer = TestClient(make_app(lm, "pairs")).post("/v1/embeddings", json={"input": texts[:2]}).json()
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], vectors[:2], atol=1e-6)
    states = lm_research.pipeline("feature-extraction", model=run / folder)(texts[0], return_tensors=True)[0, 0]
    np.testing.assert_allclose(states / np.linalg.norm(states), vectors[0], atol=1e-6)


def test_scores_do_not_depend_on_the_batch_size(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """37 records in batches of 16 and of 5: none is dropped or counted twice. Pooling and prompts are those of the model directory."""
    model, said = shutil.copytree(run / "model", tmp_path / "model"), "config_sentence_transformers.json"
    prompts = {"prompts": {"query": "", "other": "find "}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    (model / said).write_text(json.dumps(prompts))
    start = {"train.init_from": model, "optimizer.learning_rate": 0.0, "optimizer.weight_decay": 0.0}
    start |= {"train.num_epochs": 0, "train.num_steps": 1, "train.batch_size": 5, "task.negative_key": "wrong"}
    assert train(tmp_path / "run", **files, **start) == 0
    own, before = summary(tmp_path / "run")["validation"], summary(run)["validation"]
    for name in ("mrr_at_10", "recall_at_1", "recall_at_5", "recall_at_10"):
        assert own[f"eval_{name}"] == before[f"eval_{name}"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["pooling"] == "cls"
    assert json.loads((tmp_path / "run" / "model" / said).read_text()) == prompts
    assert lm_research.from_pretrained(tmp_path / "run").embedding.prompts == prompts["prompts"]


def test_evaluate_reproduces_the_runs_own_scores(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    task = {"name": "pairs", "task": "embedding", "data": str(files["task.validation"]), "pair_key": "pair"}
    (tmp_path / "suite.json").write_text(json.dumps([task | {"negative_key": "wrong"}]))
    given = [f"--model={run}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main([*given, "--batch_size=8"]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["pairs"]["scores"]
    assert list(scores) == ["recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10"]
    for name, found in scores.items():
        assert found["mean"] == pytest.approx(summary(run)["validation"][f"eval_{name}"])


@pytest.mark.slow
def test_graded_similarities_of_a_causal_model(tmp_path: pathlib.Path) -> None:
    """The fraction of words that two texts have in common, from 0 to 5; the last state is the vector."""
    draw, rows = random.Random(0), []
    for _ in range(400):
        a, b = draw.sample(WORDS[:9], 2), draw.sample(WORDS[:9], 2)
        b[0] = draw.choice([a[0], b[0]])
        rows.append({"text": " ".join(a), "pair": " ".join(b), "score": 2.5 * len({*a} & {*b})})
    keys = {
        "task.train": write(tmp_path / "a.jsonl", rows),
        "task.problem_type": "regression",
        "task.label_key": "score",
    }
    keys |= {"task.value_one": 5.0, "data.validation_fraction": 0.2, "model.family": "gpt2", "train.num_epochs": 15}
    keys |= {"tokenizer.vocab_size": 64}
    assert train(tmp_path / "run", **keys, **{"train.accumulation_steps": 2}) == 0
    assert summary(tmp_path / "run")["validation"]["eval_spearman"] > 0.8
    assert lm_research.from_pretrained(tmp_path / "run" / "model").embedding.pooling == "last"


@pytest.mark.slow
def test_the_loss_is_the_same_on_one_and_on_eight_devices(files: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """The negatives of each row are those of all devices: a loss over the two rows of each device would differ."""
    tree: dict[str, dict[str, Any]] = {"task": {"name": "embedding", "pair_key": "pair", "symmetric": True}}
    for key, value in (TINY | files).items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = str(value) if isinstance(value, pathlib.Path) else value
    (tmp_path / "config.json").write_text(json.dumps(tree))
    script = pathlib.Path(__file__).with_name("embedding_devices.py")
    command = [sys.executable, str(script), str(tmp_path / "config.json"), str(tmp_path)]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    one, eight = map(json.loads, done.stdout.splitlines())
    assert (one["devices"], eight["devices"]) == (1, 8) and one["loss"] > 2.0
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert eight["norms"] == pytest.approx(one["norms"], rel=1e-3, abs=1e-6)


GOLDENS = np.load(pathlib.Path(__file__).parent / "goldens" / "embedding.npz")

WRONG = {
    "one text": ({"task.pair_key": ""}, "name the second text's field in --config.task.pair_key"),
    "parts of a batch": ({"train.accumulation_steps": 2}, "computed at once, as one program"),
    "a program per device": ({"mesh.preset": "shard_map"}, "computed at once, as one program"),
    "several labels": ({"task.problem_type": "labels"}, "task.problem_type is 'labels'"),
    "products for values": (
        {"task.problem_type": "regression", "task.normalize": "false"},
        "task.normalize must be true",
    ),
    "alone": ({"train.batch_size": 1}, "Use 2 or more"),
    "an encoder and a decoder": ({"model.family": "t5"}, "fine-tunes a model of kind encoder or decoder"),
    "another's metric": (
        {"task.metric": "spearman"},
        "task.metric is 'spearman'. Valid: contrastive_loss_nats, mrr_at_10, recall_at_1, ",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_incompatible_keys(case: str, files: dict[str, Any], tmp_path: pathlib.Path, capsys: Any) -> None:
    keys, message = WRONG[case]
    assert train(tmp_path / "run", **files, **keys) == 2
    assert message in capsys.readouterr().err


def corpus_of(folder: pathlib.Path, rows: list[dict[str, Any]], **keys: Any) -> tuple[Any, Any]:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    file = str(write(folder / "a.jsonl", rows))
    task = {"name": "embedding", "pair_key": "pair", "train": file, "validation": file} | keys
    config = resolve({"task": task, "data": {"max_length": 16}, "tokenizer": {"path": str(folder)}})
    corpus = open_labeled(config, folder / "run", TASKS["embedding"].reader(config), lambda line: None)
    return TASKS["embedding"](config, corpus), corpus


def test_rows_of_a_batch(tmp_path: pathlib.Path) -> None:
    """[CLS] a [SEP] is 2 5 3; equal texts have equal numbers, also where one is a first and the other a second one."""
    rows = [{"text": "a", "pair": "b c", "not": "d"}, {"text": "d", "pair": "a", "not": "b c"}]
    task, corpus = corpus_of(tmp_path, rows, negative_key="not")
    batch = task.examples(corpus.train, "train").batch(np.zeros(3, np.int64), np.array([0, 1, -1]), 4)
    assert batch["tokens_BL"].tolist() == [
        [[2, 5, 3, 0], [2, 6, 7, 3], [2, 8, 3, 0]],
        [[2, 8, 3, 0], [2, 5, 3, 0], [2, 6, 7, 3]],
        [[0] * 4] * 3,
    ]
    assert batch["texts_BC"].tolist() == [[0, 1, 2], [2, 0, 1], [-1] * 3]
    assert batch["row_weights_B"].tolist() == [1, 1, 0]


def test_the_cosine_loss_matches_sentence_transformers(tmp_path: pathlib.Path) -> None:
    task, _ = corpus_of(tmp_path, [{"text": "a", "pair": "b", "label": 1}], problem_type="regression")
    batch = {"labels_B": GOLDENS["labels"], "row_weights_B": np.ones(6)}
    found = task.objective.logit_sums(l2_normalize(jnp.asarray(GOLDENS["vectors"])), batch)["squared_error"] / 6
    assert float(found) == pytest.approx(float(GOLDENS["cosine"]), rel=1e-5)


def test_values_become_cosines(tmp_path: pathlib.Path) -> None:
    rows = [{"text": "a", "pair": "b", "label": value} for value in (0, 2.5, "5")]
    _, corpus = corpus_of(tmp_path, rows, problem_type="regression", value_one=5.0)
    assert corpus.arrays["train"]["labels"].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    (tmp_path / "signed").mkdir()
    _, corpus = corpus_of(tmp_path / "signed", rows, problem_type="regression", value_zero=2.5, value_one=5.0)
    assert corpus.arrays["train"]["labels"].tolist() == [-1, -1, 0, 0, 1, 1]


BAD = {
    "out of range": ({"label": 5}, "field 'label' is 5, which is not a number that maps to a cosine from -1 to 1"),
    "no number": ({"label": "high"}, "field 'label' is 'high', which is not a number"),
    "nothing": ({"label": None}, "field 'label' is None, which is not a number"),
    "an empty text": ({"pair": " "}, "field 'pair' is empty"),
    "no text": ({"pair": 3}, "field 'pair' is 3, not a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_records_that_cannot_be_used(case: str, tmp_path: pathlib.Path) -> None:
    change, message = BAD[case]
    good = {"text": "a", "pair": "b", "label": 1}
    with pytest.raises(DataError, match=f"a.jsonl, line 2.*{message}"):
        corpus_of(tmp_path, [good, good | change], problem_type="regression")
