"""Writing targets for sources through the real command: reversing words, and the messages for records that cannot be used."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

import lm_research
from helpers.train_helpers import (
    ROOT,
    call,
    checkpoints,
    finish,
    metrics,
    same,
    start,
    summary,
    without_training_of_tokenizers,
)
from lm_research import evaluate, predict
from lm_research.config import ModelConfig, resolve
from lm_research.errors import ConfigError, DataError
from lm_research.interop import huggingface
from lm_research.models.families import define_model
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled

WORDS = "river stone bread water light night sheep field".split()
TINY = {
    "model.family": "transformer",
    "model.num_layers": 1,
    "model.hidden_size": 64,
    "model.num_heads": 4,
    "model.intermediate_size": 128,
    "model.max_length": 32,
    "model.dropout_rate": 0.0,
    "model.init_std": 0.1,
    "model.attention_dropout_rate": 0.0,
    "data.max_length": 32,
    "objective.target_length": 16,
    "tokenizer.type": "wordpiece",
    "tokenizer.vocab_size": 64,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 5e-3,
    "schedule.name": "linear",
    "schedule.warmup_ratio": 0.1,
    "train.num_steps": 200,
    "train.batch_size": 32,
    "logging.trackers": "none",
    "logging.every_steps": 100,
    "eval.every_steps": 100,
    "eval.num_batches": 1,
    "checkpoint.every_steps": 100,
    "task.metric": "chrf",
    "task.source_prefix": "turn: ",
}


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Two to four words, and the same from last to first."""
    draw = random.Random(seed)
    found = [[draw.choice(WORDS) for _ in range(draw.randint(2, 4))] for _ in range(count)]
    return [{"source": " ".join(words), "target": " ".join(reversed(words))} for words in found]


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(workdir: pathlib.Path, **keys: Any) -> int:
    flags = [f"--config.{key}={value}" for key, value in (TINY | keys).items()]
    flags = without_training_of_tokenizers(flags)
    return call([f"--config={ROOT}/configs/finetune/seq2seq.py", f"--workdir={workdir}", *flags])


def predictions(run: pathlib.Path, part: str = "test") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"predictions_{part}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    for name, given in (("train", (3000, 0)), ("dev", (40, 1)), ("test", (21, 2))):
        write(folder / f"{name}.jsonl", pairs(*given))
    return {
        "task.train": folder / "train.jsonl",
        "task.validation": folder / "dev.jsonl",
        "task.test": folder / "test.jsonl",
        "data.cache_dir": folder / "cache",
    }


@pytest.fixture(scope="module")
def run(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An uninterrupted run; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "turned"
    assert train(workdir, **files) == 0
    return workdir


def test_it_learns_to_reverse_words(run: pathlib.Path) -> None:
    """Nearly all held-out sources were never seen; guessing the order is right for one in 24 of four words."""
    found = summary(run)
    assert found["validation"]["eval_exact_match"] > 0.7 and found["test"]["eval_exact_match"] > 0.6
    lines = [line for line in metrics(run) if "eval_chrf" in line]
    assert [line["step"] for line in lines] == [
        100,
        200,
    ]  # each evaluation generates; the best checkpoint is chosen by that
    best = max(lines, key=lambda line: line["eval_chrf"])
    assert found["best_step"] in checkpoints(run)
    assert best["eval_chrf"] == next(line["eval_chrf"] for line in lines if line["step"] == found["best_step"])


@pytest.mark.parametrize("part", ["validation", "test"])
def test_scores_are_those_of_the_packages_for_the_outputs(part: str, run: pathlib.Path) -> None:
    rows, scores = predictions(run, part), summary(run)[part]
    written, targets = ([row[key] for row in rows] for key in ("prediction", "target"))
    assert rows[0].keys() == {"record", "where", "text", "source", "target", "prediction", "exact_match"}
    assert scores["eval_bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, [targets], force=True).score)
    assert scores["eval_chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [targets]).score)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    found = [scorer.score(target, text) for target, text in zip(targets, written, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert scores[f"eval_{name.lower()}"] == pytest.approx(np.mean([one[name].fmeasure for one in found]))
    assert scores["eval_exact_match"] == np.mean([a == b for a, b in zip(written, targets, strict=True)])


def test_pipelines_write_what_the_run_wrote(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The exported model and the run itself store the prefix, how a target begins and ends, and its maximum length."""
    rows = predictions(run)
    sources, written = ([row[key] for row in rows] for key in ("source", "prediction"))
    for directory in (run / "model", run):
        lm = lm_research.from_pretrained(directory)
        for task, key in (("translation", "translation_text"), ("summarization", "summary_text")):
            answer = lm_research.pipeline(task, model=lm)
            found = answer(sources)
            if directory != run:
                # The shapes of Hugging Face pipelines: several texts flat, one text or several sequences of each in lists.
                assert answer(sources[0]) == [found[0]]
                assert [len(one) for one in answer(sources[:2], num_beams=2, num_return_sequences=2)] == [2, 2]
            same_texts = [one[key].strip() == text for one, text in zip(found, written, strict=True)]
            assert all(same_texts) or (directory == run and summary(run)["best_step"] != summary(run)["step"])
    (tmp_path / "in.txt").write_text("".join(source + "\n" for source in sources))
    flags = [
        f"--model={run}/model",
        "--task=translation",
        f"--input={tmp_path}/in.txt",
        f"--output={tmp_path}/out.jsonl",
    ]
    assert predict.main(flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [text in json.dumps(line) for line, text in zip(lines, written, strict=True)] == [True] * len(rows)


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    shutil.copytree(run, tmp_path / "a")
    for step in checkpoints(tmp_path / "a"):
        if step > 100:
            shutil.rmtree(tmp_path / "a" / "checkpoints" / str(step))
    for name in ("predictions_test.jsonl", "summary.json"):
        (tmp_path / "a" / name).unlink()
    assert 100 in checkpoints(tmp_path / "a") and train(tmp_path / "a", **files) == 0
    assert same(run, tmp_path / "a")
    assert predictions(tmp_path / "a") == predictions(run)


def test_no_record_is_dropped_or_counted_twice(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """40 and 21 records in batches of 7, with beams: the same number of lines, in order, and the same loss."""
    keys = {
        "train.init_from": run / "model",
        "optimizer.learning_rate": 0.0,
        "train.num_steps": 1,
        "train.batch_size": 7,
    }
    keys |= {"task.generation": "num_beams=2", "eval.every_steps": 0}
    assert train(tmp_path / "again", **files, **keys) == 0
    for part in ("validation", "test"):
        before, after = predictions(run, part), predictions(tmp_path / "again", part)
        assert [row["source"] for row in after] == [row["source"] for row in before]
        loss = summary(run)[part]["eval_lm_loss_nats"]
        assert summary(tmp_path / "again")[part]["eval_lm_loss_nats"] == pytest.approx(loss, abs=1e-6)
        alike = np.mean([a["prediction"] == b["prediction"] for a, b in zip(after, before, strict=True)])
        assert alike > 0.9  # two beams seldom find better
    assert json.loads((tmp_path / "again/model/generation_config.json").read_text())["num_beams"] == 2


@pytest.mark.slow
def test_two_devices_write_what_one_does(run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """The model divided over two devices, in batches of 6."""
    keys = TINY | files | {"train.init_from": run / "model", "optimizer.learning_rate": 0.0, "train.num_steps": 1}
    keys |= {"train.batch_size": 6, "eval.every_steps": 0, "mesh.fsdp": 2}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    given = [f"--config={ROOT}/configs/finetune/seq2seq.py", f"--workdir={tmp_path}/two", *flags]
    code, output = finish(start(given, XLA_FLAGS="--xla_force_host_platform_device_count=2", JAX_PLATFORMS="cpu"))
    assert code == 0, output
    for part in ("validation", "test"):
        assert predictions(tmp_path / "two", part) == predictions(run, part)
        for name in ("eval_lm_loss_nats", "eval_bleu"):
            assert summary(tmp_path / "two")[part][name] == pytest.approx(summary(run)[part][name], abs=1e-5)


def test_evaluate_reproduces_the_runs_own_scores(
    run: pathlib.Path, files: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    task = {
        "name": "turn",
        "task": "seq2seq",
        "data": str(files["task.test"]),
        "text_key": "source",
        "label_key": "target",
    }
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={run}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=10"]
    assert evaluate.main([*given, "--batch_size=8"]) == 0
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["turn"]["scores"]
    assert {"bleu", "chrf", "rouge1", "rougelsum", "exact_match"} <= scores.keys()
    for name, found in scores.items():
        assert found["mean"] == pytest.approx(summary(run)["test"][f"eval_{name}"], abs=1e-6), name


# ---------------------------------------------------------------------------------------------- rows


def task_of(folder: pathlib.Path, source: str, **keys: Any) -> tuple[Any, Any, list[str]]:
    """A task, its data and its log, with a tokenizer of one token a word: [CLS] text [SEP]."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    task = {"name": "seq2seq", "text_key": "s", "label_key": "t", "train": source, "validation": source}
    task |= {name: value for name, value in keys.items() if name not in ("data", "train")}
    config = resolve(
        {
            "task": task,
            "data": {"max_length": 8} | keys.get("data", {}),
            "objective": {"target_length": 8},
            "tokenizer": {"path": str(folder)},
            "train": {"batch_size": 4} | keys.get("train", {}),
        }
    )
    log: list[str] = []
    corpus = open_labeled(config, folder / "run", TASKS["seq2seq"].reader(config), log.append)
    return TASKS["seq2seq"](config, corpus), corpus, log


def test_rows_as_computed_by_hand(tmp_path: pathlib.Path) -> None:
    """The letters a to h are 5 to 12; of 8 tokens 2 are special, so 6 of a text are kept."""
    rows = [{"s": "b c", "t": "d"}, {"s": "a b c d e f g", "t": "a b c d e f g h"}]
    path = write(tmp_path / "a.jsonl", rows)
    task, corpus, log = task_of(tmp_path, str(path), source_prefix="a ")
    examples = task.examples(corpus.train, "train")
    assert examples.width(np.array([0, 1])) == (8, 8)
    batch = examples.batch(np.zeros(3, np.int64), np.array([0, 1, -1]), (8, 8))
    assert batch["source_tokens_BS"].tolist() == [[2, 5, 6, 7, 3, 0, 0, 0], [2, 5, 5, 6, 7, 8, 9, 3], [0] * 8]
    assert batch["targets_BL"].tolist() == [[2, 8, 3] + [0] * 5, [2, 5, 6, 7, 8, 9, 10, 3], [0] * 8]
    assert batch["tokens_BL"].tolist() == [[0, 2, 8] + [0] * 5, [0, 2, 5, 6, 7, 8, 9, 10], [0] * 8]
    assert batch["weights_BL"].sum(1).tolist() == [3, 8, 0] and batch["row_weights_B"].tolist() == [1, 1, 0]
    assert any("1 sources cut to 8 tokens, 1 targets to 8" in line for line in log)
    assert corpus.metadata["validation"][0] == {"source": "b c", "target": "d"}


def test_smoothing_of_the_objective_belongs_to_the_task() -> None:
    with pytest.raises(ConfigError, match="no effect on task.name=seq2seq. Set --config.task.label_smoothing"):
        resolve({"task": {"name": "seq2seq", "train": "a.jsonl"}, "objective": {"label_smoothing": 0.1}})


def test_two_files_of_lines_and_nested_fields(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.de").write_text("a b\nc\n")
    (tmp_path / "x.en").write_text("d\ne f\n")
    lines = f"lines:{tmp_path}/x.de,{tmp_path}/x.en"
    _, corpus, _ = task_of(tmp_path, lines, text_key="source", label_key="target")
    nested = [{"translation": {"de": "a b", "en": "d"}}, {"translation": {"de": "c", "en": "e f"}}]
    keys = {"text_key": "translation.de", "label_key": "translation.en"}
    _, other, _ = task_of(tmp_path, str(write(tmp_path / "n.jsonl", nested)), **keys)
    assert corpus.train.tokens.tolist() == other.train.tokens.tolist() == [5, 6, 8, 7, 9, 10]
    assert np.asarray(corpus.train.document_starts).tolist() == [0, 2, 4]


def model_dir(folder: pathlib.Path, family: str, **config: Any) -> pathlib.Path:
    """A tiny model in the Hugging Face format, with additional keys in config.json."""
    shape = ModelConfig(family=family, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_length=16)
    definition = define_model(shape, 13, "seq2seq_lm")
    hf = huggingface.hf_config(definition, family) | config
    huggingface.save(folder, definition, family, definition.init(0), hf)
    return folder


def test_targets_begin_as_the_models_files_declare(tmp_path: pathlib.Path) -> None:
    """BART's decoder starts with its end token, then a text is forced to begin; mBART's with a language, which must be given."""
    path = str(write(tmp_path / "a.jsonl", [{"s": "a", "t": "b"}] * 2))
    origin = model_dir(tmp_path / "bart", "bart", decoder_start_token_id=4, forced_bos_token_id=2)
    task, corpus, _ = task_of(tmp_path, path, train={"init_from": str(origin)})
    assert (task.start, task.options.forced_bos_token_id, task.options.ends) == (4, 2, [3])
    batch = task.examples(corpus.train, "train").batch(np.zeros(1, np.int64), np.zeros(1, np.int64), (8, 8))
    assert batch["tokens_BL"][0].tolist() == [4, 2, 6, 0, 0, 0, 0, 0]
    assert json.loads(task.files(None)["generation_config.json"])["forced_bos_token_id"] == 2
    origin = model_dir(tmp_path / "mbart", "mbart")
    with pytest.raises(ConfigError, match="begins texts with the token of their language"):
        task_of(tmp_path, path, train={"init_from": str(origin)})
    task, _, _ = task_of(tmp_path, path, train={"init_from": str(origin)}, decoder_start="h")
    assert task.start == 12


def test_an_empty_side_is_named_or_left_out(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"s": "a", "t": "b"}, {"s": "a", "t": " "}, {"s": "c", "t": "d"}])
    with pytest.raises(DataError, match="a.jsonl, line 2 has an empty target"):
        task_of(tmp_path, str(path))
    _, corpus, log = task_of(tmp_path, str(path), data={"on_error": "skip"})
    assert corpus.train.num_documents == 2 and any("1 of 3 records are empty and left out" in line for line in log)


WRONG = {
    "unequal files": ("lines:{0}/x.de,{0}/x.en", {}, "x.de, line 2 has no partner: .*x.en ends after line 1"),
    "one file": ("lines:{0}/x.de", {}, "does not name two files"),
    "a missing column": ("{0}/a.jsonl", {"label_key": "target"}, "a.jsonl, line 1 has no field 'target'"),
    "a missing inner field": ("{0}/n.jsonl", {"text_key": "x.fr"}, "n.jsonl, line 1, x has no field 'fr'"),
    "a number": ("{0}/n.jsonl", {"text_key": "x.de", "label_key": "n"}, "field 'n' is 3, not a text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_records_that_cannot_be_used(case: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.de").write_text("a\nb\n")
    (tmp_path / "x.en").write_text("c\n")
    write(tmp_path / "a.jsonl", [{"s": "a", "t": "b"}])
    write(tmp_path / "n.jsonl", [{"x": {"de": "a"}, "n": 3}])
    source, keys, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        task_of(tmp_path, source.format(tmp_path), **keys)


def test_settings_that_cannot_be_used(
    files: dict[str, Any], tmp_path: pathlib.Path, capsys: Any, monkeypatch: Any
) -> None:
    cases = [
        ({"model.family": "gpt2"}, "fine-tunes a model of kind encoder-decoder"),
        ({"task.generation": "num_beans=2"}, "num_beans=2'. Did you mean 'num_beams'"),
        ({"task.generation": "num_beams=0"}, "num_beams=0: it must be at least 1"),
        ({"task.predict_with_generate": "end"}, "task.metric=chrf scores generated texts"),
        ({"task.decoder_start": "ro_RO"}, "'ro_RO' is not a token"),
        ({"objective.target_length": 4}, "hardly any space"),
        ({"task.metric": "blue"}, "Did you mean 'bleu'"),
    ]
    for keys, message in cases:
        assert train(tmp_path / "run", **(files | keys)) == 2, message
        assert message in capsys.readouterr().err
    monkeypatch.setattr("lm_research.metrics.texts.PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(ConfigError, match="need the package no-such-package. Install them with `pip install"):
        architecture = define_model(ModelConfig(family="t5"), 128).arch
        TASKS["seq2seq"].check(resolve({"task": {"name": "seq2seq", "train": "a"}}), architecture)
