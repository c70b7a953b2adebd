"""Question answering through the real command: questions about contexts that need several windows."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.train_helpers import ROOT, call, summary, without_training_of_tokenizers
from lm_research import evaluate
from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.metrics import answers as squad
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled

KINDS = {"Where": "north south east west".split(), "When": "dawn noon dusk night".split()}
FILLER = "and then they went over the hill with all their gold".split()
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.max_length": 32,
    "model.dropout_rate": 0.0,
    "model.attention_dropout_rate": 0.0,
    "data.max_length": 32,
    "tokenizer.type": "wordpiece",
    "tokenizer.vocab_size": 80,
    "optimizer.learning_rate": 1e-2,
    "train.num_epochs": 5,
    "train.batch_size": 32,
    "logging.trackers": "none",
    "logging.every_steps": 50,
    "task.doc_stride": 8,
    "task.n_best": 3,
    "model.init_std": 0.1,
    "task.max_answer_length": 5,
}


def document(articles: int, seed: int) -> dict[str, Any]:
    """SQuAD's form. A context has a place, a time or both among 10 to 50 other words; the question requests either."""
    draw = random.Random(seed)
    data = []
    for number in range(articles):
        text = [draw.choice(FILLER) for _ in range(draw.randint(10, 50))]
        asked = draw.choice([["Where"], ["When"], ["Where", "When"], ["Where", "When"]])
        for place, kind in zip(draw.sample(range(len(text)), len(asked)), asked, strict=True):
            text[place] = draw.choice(KINDS[kind])
        context, qas = " ".join(text) + ".", []
        for kind, words in KINDS.items():
            answers = [
                {"text": word, "answer_start": f" {context}".index(f" {word}")} for word in words if word in text
            ]
            qas.append({"id": f"{seed}-{number}-{kind}", "question": f"{kind} did they go?", "answers": answers})
            qas[-1]["is_impossible"] = not answers
        data.append({"title": "t", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0", "data": data}


def train(workdir: pathlib.Path, **keys: Any) -> int:
    flags = [f"--config.{key}={value}" for key, value in (TINY | keys).items()]
    flags = without_training_of_tokenizers(flags)
    return call([f"--config={ROOT}/configs/finetune/question_answering.py", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("squad")
    for name, given in (("train", (250, 0)), ("dev", (25, 1)), ("test", (9, 2))):
        (folder / f"{name}.json").write_text(json.dumps(document(*given), indent=1 if name == "dev" else None))
    return {
        "task.train": folder / "train.json",
        "task.validation": folder / "dev.json",
        "task.test": folder / "test.json",
        "data.cache_dir": folder / "cache",
    }


@pytest.fixture(scope="module")
def run(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A read-only run."""
    workdir = tmp_path_factory.mktemp("runs") / "answers"
    assert train(workdir, **files) == 0
    return workdir


def predictions(run: pathlib.Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"predictions_{part}.jsonl").read_text().splitlines()]


def test_it_learns_to_answer_and_when_there_is_no_answer(run: pathlib.Path) -> None:
    found = summary(run)
    assert found["validation"]["eval_f1"] > 0.9  # the word without regard to the question: about half
    assert min(found["validation"][f"eval_{kind}_answer_f1"] for kind in ("has", "no")) > 0.8
    assert found["test"]["eval_best_f1"] >= found["test"]["eval_f1"]


def test_evaluate_reproduces_the_runs_own_scores(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """A batch size that splits the windows of a question."""
    keys = ("text_key", "pair_key", "label_key", "doc_stride", "n_best", "max_answer_length")
    own = json.loads((run / "config.json").read_text())["task"]
    task = {"name": "squad", "task": "question_answering", "data": str(files["task.test"])}
    (tmp_path / "suite.json").write_text(json.dumps([task | {key: own[key] for key in keys}]))
    given = [f"--model={run}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main([*given, "--batch_size=5"]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["squad"]["scores"]
    assert scores.keys() == {"exact_match", "f1"}
    for name, found in scores.items():
        assert found["mean"] == pytest.approx(summary(run)["test"][f"eval_{name}"], abs=1e-6), name


def test_predictions_agree_with_the_scores_and_the_pipeline(run: pathlib.Path, files: dict[str, Any]) -> None:
    """The exported model gives the same through pipeline(), for contexts that fit one window."""
    rows = predictions(run, "test")
    given = {
        question["id"]: (question, paragraph["context"])
        for article in json.loads(files["task.test"].read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert [row["id"] for row in rows] == list(given)
    assert summary(run)["test"]["eval_f1"] == pytest.approx(np.mean([row["f1"] for row in rows]))
    answer, short = lm_research.pipeline("question-answering", model=run / "model"), 0
    for row in rows:
        question, context = given[row["id"]]
        best = next(one for one in row["n_best"] if one["answer"])
        assert context[best["start"] : best["end"]] == best["answer"]
        assert row["prediction"] == ("" if row["null_margin"] > 0 else best["answer"])
        assert row["exact_match"] == (row["prediction"] in ([one["text"] for one in question["answers"]] or [""]))
        if len(context.split()) > 18:
            continue
        short += 1
        options = dict(max_seq_len=32, doc_stride=8, max_answer_len=5, align_to_words=False)
        assert answer({"question": question["question"], "context": context}, **options)["answer"] == best["answer"]
    assert short > 2


WORDS = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]


def corpus_of(folder: pathlib.Path, records: list[dict[str, Any]], **keys: Any) -> tuple[Any, Any]:
    """A task and its data, with a tokenizer that has each word of WORDS."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "where", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"text_key": "context", "pair_key": "question", "label_key": "answers", "doc_stride": 3, "n_best": 2}
    task |= {"name": "question_answering", "train": str(folder / "a.jsonl"), "validation": str(folder / "a.jsonl")}
    config = resolve(
        {
            "task": task | keys,
            "data": {"max_length": 11},
            "tokenizer": {"path": str(folder)},
            "train": {"batch_size": 4},
        }
    )
    corpus = open_labeled(config, folder / "run", TASKS[config.task.name].reader(config), lambda line: None)
    return TASKS[config.task.name](config, corpus), corpus


def record(number: int, length: int, first: int, last: int) -> dict[str, Any]:
    """WORDS[0 .. length) as a context, and words [first, last] as the answer (none if last < first)."""
    text = " ".join(WORDS[first : last + 1])
    answers = {"text": [text], "answer_start": [3 * first]} if text else {"text": [], "answer_start": []}
    return {"id": str(number), "question": "where", "context": " ".join(WORDS[:length]), "answers": answers}


def test_windows_and_their_targets(tmp_path: pathlib.Path) -> None:
    """11 tokens less those of [CLS] where [SEP] ... [SEP] leave 7 for the context, of which 3 overlap: windows begin at 0, 4, 8, 12."""
    task, corpus = corpus_of(
        tmp_path, [record(0, 16, 5, 6), record(1, 16, 3, 12), record(2, 7, 0, 6), record(3, 16, 9, 8)]
    )
    starts = np.asarray(corpus.train.sentence_starts)
    read = [corpus.tokenizer.decode(corpus.train.document_tokens(i).tolist()).split() for i in range(13)]
    parts = [WORDS[0:7], WORDS[4:11], WORDS[8:15], WORDS[12:16]]
    assert [words[1:] for words in read] == [*parts, *parts, WORDS[0:7], *parts]
    assert corpus.arrays["train"]["record"].tolist() == [0] * 4 + [1] * 4 + [2] + [3] * 4
    assert np.diff(starts).tolist() == [11, 11, 11, 8] * 2 + [11] + [11, 11, 11, 8]
    labels = corpus.arrays["train"]["labels"].tolist()  # the first word of a window is at place 3
    assert labels[:4] == [[3 + 5, 3 + 6], [3 + 1, 3 + 2], [0, 0], [0, 0]]
    assert labels[4:8] == [[0, 0]] * 4  # in no window as a whole
    assert labels[8] == [3, 9] and labels[9:] == [[0, 0]] * 4
    assert corpus.arrays["train"]["second"].tolist() == [3] * 13  # of types
    batch = task.examples(corpus.train, "train").batch(np.zeros(2, np.int64), np.array([3, -1]))
    assert batch["types_BL"][0].tolist() == [0] * 3 + [1] * 5 + [0] * 3 and batch["row_weights_B"].tolist() == [1, 0]


def outputs_of(task: Any, corpus: Any, size: int) -> list[dict[str, np.ndarray]]:
    """Outputs of an evaluation in batches of `size`; each window has random scores of its own."""
    examples, outputs = task.examples(corpus.validation, "validation"), []
    scores = np.random.default_rng(0).normal(size=(examples.num_examples, 16, 2)).astype(np.float32)
    for first in range(0, examples.num_examples, size):
        index = np.arange(first, first + size)
        index = np.where(index < examples.num_examples, index, -1)
        batch = examples.batch(np.zeros(size, np.int64), index, 11 + first % 3)  # any width will do
        outputs.append(
            {
                "row_weights_B": batch["row_weights_B"],
                "window_B": batch["window_B"],
                "logits": scores[index][:, : batch["tokens_BL"].shape[1]],
            }
        )
    return outputs


@pytest.mark.parametrize("null", [False, True])
def test_windows_become_questions_in_batches_of_any_size(null: bool, tmp_path: pathlib.Path) -> None:
    records = [record(i, 4 + 2 * i, i, i + i % 3 - (i % 4 == 3) * 4 * null) for i in range(9)]
    task, corpus = corpus_of(tmp_path, records, max_answer_length=4, null_score_diff_threshold=0.25)
    outputs = {size: outputs_of(task, corpus, size) for size in (1, 4, 7, 64)}
    found = {size: list(task.predictions(given)) for size, given in outputs.items()}
    scores = {size: task.scores(given) for size, given in outputs.items()}
    assert task.null == null and set(scores[1]) == set(task.metric_names)
    for size in (4, 7, 64):
        assert found[size] == found[1] and scores[size] == scores[1]
    logits = [output["logits"][0] for output in outputs[1]]
    window = 0
    for number, row in enumerate(found[1]):
        length, options, nulls = 4 + 2 * number, {}, []
        begins = [0] if length <= 7 else list(range(0, length - 3, 4))
        for begin in begins:
            own = np.asarray(logits[window], np.float64)
            window += 1
            nulls.append(own[0, 0] + own[0, 1])
            for i in range(begin, min(begin + 7, length)):
                for j in range(i, min(i + 4, begin + 7, length)):
                    score = own[3 + i - begin, 0] + own[3 + j - begin, 1]
                    options[i, j] = max(options.get((i, j), -np.inf), score)
        (i, j), best = max(options.items(), key=lambda item: item[1])
        answer = " ".join(WORDS[i : j + 1])
        assert row["id"] == str(number) and [one["answer"] for one in row["n_best"] if one["answer"]][0] == answer
        none = null and min(nulls) - best > 0.25
        assert row["prediction"] == ("" if none else answer)
        assert row["f1"] == squad.f1(row["prediction"], row["answers"], null)
    assert window == len(outputs[1])
    assert scores[1]["f1"] == pytest.approx(np.mean([row["f1"] for row in found[1]]))
    # If an evaluation ends in the middle of a question, only those before it count.
    part = list(task.predictions(outputs[1][:-1]))
    assert part == found[1][:-1]


GOOD = {"id": "7", "question": "where", "context": "ba be bi", "answers": {"text": ["be"], "answer_start": [3]}}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another place": (
        {"answers": {"text": ["be"], "answer_start": [4]}},
        "'be' is not at answer_start 4 .*which has 'e ' there. The answer is at 3",
    ),
    "not there": (
        {"answers": [{"text": "bu", "answer_start": 3}]},
        "'bu' is not at answer_start 3 .*The context does not contain the answer",
    ),
    "before it": ({"answers": [{"text": "bi", "answer_start": -2}]}, "'bi' is not at answer_start -2"),
    "no words": ({"answers": {"text": [""], "answer_start": [3]}}, "'' is not at answer_start 3"),
    "lists of two lengths": ({"answers": {"text": ["be"], "answer_start": []}}, "field 'answers' is .*not answers"),
    "a text": ({"answers": "be"}, "field 'answers' is 'be', not answers"),
    "no place": ({"answers": [{"text": "be"}]}, "not answers: a list of objects with text and answer_start"),
    "no context": ({"context": "  "}, "has an empty context"),
    "a missing field": ({"question": None}, "field 'question' is None, not a text"),
    "against itself": ({"is_impossible": True}, "has 1 answers, but is_impossible is True"),
    "none, though possible": ({"answers": [], "is_impossible": False}, "has 0 answers, but is_impossible is False"),
    "a long question": (
        {"question": "where " * 6},
        "leaves 2 of data.max_length=.* tokens for the context, not more than the task.doc_stride=3",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_records_that_cannot_be_used(case: str, tmp_path: pathlib.Path) -> None:
    change, message = WRONG[case]
    with pytest.raises(DataError, match=f"a.jsonl, line 2.*{message}"):
        corpus_of(tmp_path, [GOOD, GOOD | change])


def test_settings_that_cannot_be_used(files: dict[str, Any], tmp_path: pathlib.Path, capsys: Any) -> None:
    assert train(tmp_path / "run", **files, **{"task.doc_stride": 32}) == 2
    assert "task.doc_stride=32 is an overlap of whole windows of data.max_length=32" in capsys.readouterr().err
    assert train(tmp_path / "run", **files, **{"task.pair_key": ""}) == 2
    assert "reads three fields" in capsys.readouterr().err
    assert train(tmp_path / "run", **files, **{"model.family": "gpt2"}) == 2
    assert "fine-tunes a model of kind encoder" in capsys.readouterr().err
