"""Rows that train: intervals, goals, curves, and the files that runs read."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from experiments.results import finetuning, run, sentences, sets, training, translation
from experiments.results.bag_of_words import BagOfWords
from experiments.results.row import CURVE, ROOT, VARIABLE, Figure, MissingData, Row
from experiments.results.rows import pretraining_pays
from experiments.results.training import Published, figure, interval, write_curve
from lm_research.errors import STOPPED_BY_SIGNAL, DataError


def test_intervals_are_students() -> None:
    for freedom, quantile in training.STUDENT.items():
        assert quantile == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=5e-4)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert interval([5.0]) == 0.0


@pytest.mark.parametrize(
    ("published", "agrees"),
    [
        (Published(12.0), True),  # the mean of 9, 10 and 11 is 10 ± 2.48
        (Published(13.0), False),
        (Published(13.0, spread=2.0), True),
        (Published(1.0, at_least=True), True),
        (Published(13.0, at_least=True), False),
        (Published(99.0, at_most=True), True),
        (Published(7.0, at_most=True), False),
    ],
)
def test_figures_agree_within_both_uncertainties(published: Published, agrees: bool) -> None:
    found = figure("score", [9.0, 10.0, 11.0], published)
    assert found.ours == 10.0 and found.agrees is agrees


def test_the_curve_has_evenly_spaced_steps_of_all_runs(tmp_path: pathlib.Path) -> None:
    for seed in range(2):
        (tmp_path / f"seed_{seed}").mkdir()
        lines = [{"step": step, "loss_nats": 100.0 * seed + step} for step in range(1, 16 + seed)]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 15, "eval_loss_nats": 1.0}])
        (tmp_path / f"seed_{seed}" / "metrics.jsonl").write_text(text)
    write_curve(tmp_path, [tmp_path / "seed_0", tmp_path / "seed_1"])
    curve = json.loads((tmp_path / CURVE).read_text())
    assert curve["heads"] == ["step", "training loss, seed_0", "training loss, seed_1"]
    assert curve["lines"] == [[step, step, 100 + step] for step in range(1, 16, 2)]


def test_the_page_has_the_curve_and_the_interval_and_runs_stay_in_the_workdir(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(folder: pathlib.Path) -> list[Figure]:
        (folder / CURVE).write_text(json.dumps({"heads": ["step", "training loss"], "lines": [[100, 2.25]]}))
        return [figure("score", [9.0, 10.0, 11.0], Published(12.0, at_least=True))]

    monkeypatch.setattr(run, "rows", lambda: {"one": Row("?", "A paper", "Because.", measure, seeds=(0, 1, 2))})
    arguments = ["--output", str(tmp_path), "--only", "one", "--workdir", str(tmp_path / "new" / "runs")]
    assert run.main(arguments) == 0 and (tmp_path / "new" / "runs" / "one" / CURVE).is_file()
    page = (tmp_path / "pages" / "one.md").read_text()
    assert "| 10 ± 2.5 | ≥ 12" in page and "| 100  | 2.25" in page and "seeds: 0, 1, 2." in page


def test_a_stopped_run_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    codes = iter([STOPPED_BY_SIGNAL, 2])
    monkeypatch.setattr(training, "run_saving", lambda arguments: next(codes))
    with pytest.raises(MissingData, match="continues it"):
        training.train(tmp_path, "configs/quickstart.py", 0)
    with pytest.raises(DataError, match="exit code 2"):
        training.train(tmp_path, "configs/quickstart.py", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_save_before_the_row_ends(number: int, tmp_path: pathlib.Path) -> None:
    """A row that ended first killed its run, which had not saved yet."""
    run = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
    row = f"""
import sys
from experiments.results.training import run_saving
from lm_research.common import interrupts
interrupts.watch()
with interrupts.raising_on_signal():
    run_saving([sys.executable, "-c", {run!r}, {str(tmp_path)!r}])
print("went on")
"""
    process = subprocess.Popen([sys.executable, "-c", row], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (tmp_path / "saved").exists() and "went on" not in output and process.returncode


def put(folder: pathlib.Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress(text.encode("utf-8")))


def read(folder: pathlib.Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "public"))
    return tmp_path / "public"


def test_questions_keep_a_tenth_apart(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(data, "classify/sentconv/TREC.train.all.gz", "".join(f"{n % 6} question {n} ?\n" for n in range(50)))
    put(data, "classify/sentconv/TREC.test.all.gz", "5 How far is it from Denver to Aspen ?\n\n")
    sets.SETS["trec"](tmp_path)
    train, held = read(tmp_path, "train"), read(tmp_path, "validation")
    assert (len(train), len(held)) == (45, 5)
    assert sorted(int(one["text"].split()[1]) for one in train + held) == list(range(50))
    assert all(int(one["label"]) == int(one["text"].split()[1]) % 6 for one in train + held)
    assert read(tmp_path, "test") == [{"label": "5", "text": "How far is it from Denver to Aspen ?"}]


def test_ten_folds_test_each_review_once(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(data, "classify/sentconv/rt-polarity.all.gz", "".join(f"{n % 2} review {n}\n" for n in range(45)))
    tested: list[str] = []
    for fold in range(10):
        sets.SETS[f"mr{fold}"](tmp_path)
        parts = {part: [one["text"] for one in read(tmp_path, part)] for part in ("train", "validation", "test")}
        assert len(set().union(*map(set, parts.values()))) == 45 == sum(map(len, parts.values()))
        tested += parts["test"]
    assert sorted(tested) == sorted(f"review {n}" for n in range(45))


def test_pairs_with_quotes_and_parts_without_a_head_line(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    head = "index\tsentence1\tsentence2\tlabel\n"
    put(data, "glue/RTE/train.tsv.gz", head + '0\tHe said "no.\tHe spoke.\tentailment\n')
    put(data, "glue/RTE/val.tsv.gz", "7\tA.\tB.\tnot_entailment\n")
    put(data, "glue/RTE/dev.tsv.gz", head + "0\tC.\tD.\tentailment\n")
    sets.SETS["rte"](tmp_path)
    assert read(tmp_path, "train") == [
        {"label": "entailment", "text": 'He said "no.', "pair": "He spoke."},
        {"label": "not_entailment", "text": "A.", "pair": "B."},
    ]
    assert read(tmp_path, "test") == [{"label": "entailment", "text": "C.", "pair": "D."}]


def test_paraphrases_and_intents(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A byte order mark before the first name; an intent that no training record has is left out of the test part."""
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for part in ("train", "test"):
        put(data, f"glue/MRPC/msr_paraphrase_{part}.txt.gz", head + "1\t3\t4\tA b.\tB a.\n")
    sets.SETS["mrpc"](tmp_path)
    assert read(tmp_path, "test") == [{"label": "1", "text": "A b.", "pair": "B a."}]
    for part, labels in (("train", "flight\nfare\n"), ("test", "fare\nmeal\n")):
        put(data, f"tagging/atis_snips/atis/{part}/label.gz", labels)
        put(data, f"tagging/atis_snips/atis/{part}/seq.in.gz", "one\ntwo \n")
    sets.SETS["atis"](tmp_path)
    assert read(tmp_path, "test") == [{"label": "fare", "text": "one"}]


def test_tags_of_both_kinds_of_files(tmp_path: pathlib.Path) -> None:
    """CoNLL-2000's test part has I-LST, which its training part lacks."""
    (tmp_path / "a.conll").write_text("Corp. NNP I-NP\n. . O\n\nIn IN B-PP\n")
    (tmp_path / "b.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O", "I-LST"]}\n')
    assert finetuning.tags(tmp_path / "a.conll") == {"I-NP", "O", "B-PP"}
    assert finetuning.tags(tmp_path / "b.jsonl") == {"O", "I-LST"}


def test_queries_out_of_scope_are_left_out_and_semicolons_stay_in_messages(
    data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    parts = {
        f"{scope}{name}": [[f"{name} text", f"{scope}intent"]]
        for name in ("train", "val", "test")
        for scope in ("", "oos_")
    }
    put(data, "classify/clinc150/data_full.json.gz", json.dumps(parts, indent=1))
    sets.SETS["clinc150"](tmp_path)
    assert read(tmp_path, "validation") == [{"label": "intent", "text": "val text"}]
    for part in ("train", "val", "test"):
        put(data, f"classify/emotion/{part}.txt.gz", f"text;label_name\ni feel; {part};joy\n")
    sets.SETS["emotion"](tmp_path)
    assert read(tmp_path, "test") == [{"label": "joy", "text": "i feel; test"}]


def test_messages_with_several_emotions(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The numbers of labels count from 0; quotes belong to the text."""
    for part in ("train", "dev", "test"):
        put(data, f"classify/goemotions/original/{part}.tsv.gz", f'"{part}" it is\t2,0\tid1\nno\t1\tid2\n')
    (data / "classify" / "goemotions" / "original" / "labels.txt").write_text("admiration\namusement\nneutral\n")
    sets.SETS["goemotions"](tmp_path)
    assert read(tmp_path, "test") == [
        {"label": ["neutral", "admiration"], "text": '"test" it is'},
        {"label": ["amusement"], "text": "no"},
    ]


def test_questions_about_one_context_stay_together(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A tenth of the contexts is the test part."""
    answers = [{"text": "a", "answer_start": 0}]
    paragraphs = [
        {"context": f"a {n // 2}", "qas": [{"id": "1", "question": f"which {n}?", "answers": answers}]}
        for n in range(40)
    ]
    articles = [{"paragraphs": [paragraph]} for paragraph in paragraphs]
    put(data, "qa/tydiqa_goldp/tydiqa.goldp.en.train.json.gz", json.dumps({"data": articles}, indent=1))
    sets.SETS["tydiqa"](tmp_path)
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    assert (len(train), len(test)) == (36, 4)
    contexts = [{one["context"] for one in part} for part in (train, test)]
    assert not contexts[0] & contexts[1] and len(contexts[1]) == 2
    assert sorted(int(one["question"][6:-1]) for one in train + test) == list(range(40))
    assert all(one["answers"] == answers for one in train + test)


def test_the_play_is_cut_where_nanogpt_cuts_it(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data.mkdir()
    (data.parent / "tinyshakespeare.txt").write_text("0123456789" * 10 + "abc")
    sets.SETS["tinyshakespeare"](tmp_path / "set")
    assert (tmp_path / "set" / "test.txt").read_text() == "23456789abc"  # 103 x 0.9 = 92.7: 92 characters to train
    assert len((tmp_path / "set" / "train.txt").read_text()) == 92


def test_an_unknown_set_is_named(capsys: pytest.CaptureFixture, tmp_path: pathlib.Path) -> None:
    assert sets.main(["trek", str(tmp_path)]) == 2
    assert "There is no set 'trek'. Did you mean 'trec'?" in capsys.readouterr().err


def fake_train(scores: list[dict[str, float]], calls: list[tuple[Any, ...]]) -> Callable[..., dict[str, Any]]:
    def train(folder: pathlib.Path, config: str, seed: int, **settings: object) -> dict[str, Any]:
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 5, "loss_nats": 1.5}\n')
        calls.append((folder.name, config, seed, settings))
        return {"validation": scores[len(calls) - 1]}

    return train


def test_fine_tuning_stands_beside_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Means over seeds; records that were left out count as wrong; Trainer's scores are the first figures."""
    calls: list[tuple[Any, ...]] = []
    scores = [{"eval_accuracy": value} for value in (0.9, 1.0, 0.8)]
    monkeypatch.setattr(finetuning, "train", fake_train(scores, calls))
    monkeypatch.setattr(finetuning, "model", lambda: tmp_path / "model")
    monkeypatch.setattr(finetuning, "TRAINER", tmp_path / "trainer.json")
    monkeypatch.setitem(finetuning.SETS, "atis", lambda folder: sets.write(folder, train=[], test=[{}] * 8))
    stored = {"epochs": 3.0, "learning_rate": 5e-5, "scores": {"accuracy": [0.70, 0.72, 0.74]}}
    (tmp_path / "trainer.json").write_text(json.dumps({"atis": stored}))
    published = {"accuracy": Published(97.76)}
    one = finetuning.FineTuning(
        "atis", "?", published, "A paper", "Because.", left_out=2, floor=("always flight", 71.0)
    )
    beside, scale, floor = one.measure(tmp_path)
    assert floor.name == "accuracy x 100, beside always flight" and floor.theirs == 71.0 and floor.at_least
    assert beside.ours == scale.ours == pytest.approx(72.0)  # 0.9 x 8 of 10
    assert beside.theirs == pytest.approx(72.0) and beside.agrees and not scale.agrees
    assert beside.tolerance == pytest.approx(4.303 * (8.0**2 + 2.0**2) ** 0.5 / 3**0.5)
    assert one.beside_trainer([beside, scale, floor]) == [beside, scale, floor]  # of a stored measurement
    for other in ({"epochs": 10.0}, {"rate": 1e-4}):  # not Trainer's
        assert dataclasses.replace(one, **other).beside_trainer([beside, scale, floor]) == [scale, floor]
    assert [call[0] for call in calls] == ["seed_0", "seed_1", "seed_2"] and [call[2] for call in calls] == [0, 1, 2]
    settings = calls[0][3]
    assert settings["task__validation"] == tmp_path / "set" / "test.jsonl"
    assert settings["train__init_from"] == tmp_path / "model"


def test_words_that_tell_a_label_are_learned() -> None:
    """The weights are where the gradient of the penalized loss is zero: for one word and two labels its equation has one solution."""
    texts, labels = ["Good !", "good", "bad", "bad ?"], ["1", "1", "0", "0"]
    model = BagOfWords(texts, labels)
    assert model.accuracy(["GOOD unknown", "so bad"], ["1", "0"]) == 1.0
    single = BagOfWords(["yes", ""], ["1", "0"])
    weight = scipy.optimize.brentq(
        lambda w: w - 1 / (1 + np.exp(w)), 0, 1
    )  # bias -w: both texts are at distance w from the border
    assert single.weights[0] == pytest.approx([-weight, weight], abs=1e-3)
    assert single.weights[1] == pytest.approx([weight / 2, -weight / 2], abs=1e-3)


def test_what_pretraining_brings_is_positive_beyond_its_interval() -> None:
    gain, random, bag = pretraining_pays.compare("TREC", [81.0, 82.0, 83.0], [79.0, 81.0, 80.0], 85.0)
    assert gain.ours == pytest.approx(2 - 4.303 / 3**0.5) and not gain.agrees  # gains of 2, 1 and 3 points
    assert (random.ours, random.theirs, bag.theirs) == (82.0, 80.0, 85.0) and random.agrees
    assert pretraining_pays.compare("TREC", [83.0, 84.0, 85.0], [79.0, 80.0, 81.0], 85.0)[0].agrees


def test_random_weights_have_the_network_and_the_vocabulary_of_the_pretrained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pretraining_pays, "train", fake_train([{"eval_accuracy": 0.8}] * 30, calls))
    part = [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]
    for name in pretraining_pays.NAMES:
        monkeypatch.setitem(pretraining_pays.SETS, name, lambda folder: sets.write(folder, train=part, test=part))
    network = dict.fromkeys(pretraining_pays.NETWORK, 7)
    monkeypatch.setattr(pretraining_pays, "read_json", lambda *a, **k: {"model": network | {"dtype": "auto"}})
    figures = pretraining_pays.measure(tmp_path)
    assert len(figures) == 9 and len(calls) == 1 + 3 * (3 + 1 + 1 + 3)
    random = [call[3] for call in calls if "_0_" in call[0]]
    trained = [call[3] for call in calls if "_12000_" in call[0]]
    last = tmp_path / "pretraining" / "checkpoints" / "12000"
    assert len(random) == len(trained) == 9
    assert all(one["model__hidden_size"] == 7 and one["tokenizer__path"] == last / "files" for one in random)
    assert all(one["train__init_from"] == last for one in trained)
    assert [line[0] for line in json.loads((tmp_path / CURVE).read_text())["lines"]] == [0, 3000, 6000, 12000]


def test_folds_are_the_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    calls: list[tuple[Any, ...]] = []
    scores = [{"eval_accuracy": value} for value in (0.75, 0.77)]
    monkeypatch.setattr(sentences, "train", fake_train(scores, calls))
    for fold in (0, 1):
        monkeypatch.setitem(sentences.SETS, f"mr{fold}", lambda folder: sets.write(folder, train=[], test=[]))
    row = sentences.Classification("mr", "?", 75.9, 76.1, "Because.", {0: "mr0", 1: "mr1"}).row()
    assert row.measure is not None and row.seeds == (0, 1)
    assert [one.ours for one in row.measure(tmp_path)] == [76.0, 76.0]
    assert [call[3]["task__train"].parent.name for call in calls] == ["mr0", "mr1"]
    assert {call[1] for call in calls} == {"configs/sentence_classifier.py:mr"}


def test_translation_in_a_direction(
    monkeypatch: pytest.MonkeyPatch, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Only test parts with a published score are translated, from files of the pair's two languages in order."""
    calls: list[tuple[Any, ...]] = []
    commands: list[tuple[Any, ...]] = []

    def command(name: str, *arguments: Any) -> None:
        commands.append((name, *arguments))
        if name == "evaluate":
            scores = {"test": {"scores": {"bleu": {"mean": 40.0}}}}
            (tmp_path / "scores").mkdir()
            (tmp_path / "scores" / "results.json").write_text(json.dumps({"tasks": scores}))

    monkeypatch.setattr(translation, "train", fake_train([{}], calls))
    monkeypatch.setattr(translation, "command", command)
    corpus = translation.Corpus("mt/two", "dev", {"test": "test_1", "other": "test_2"})
    (data / "mt" / "two").mkdir(parents=True)
    published = {"test": Published(41.0, 0.5)}
    found = translation.Translation(corpus, "de-en", "?", published, "A paper", "Because.", steps=7).measure(tmp_path)
    assert [(one.name, one.ours, one.theirs, one.agrees) for one in found] == [("BLEU, test", 40.0, 41.0, False)]
    settings, place = calls[0][3], data / "mt" / "two"
    assert settings["data__source"] == f"lines:{place}/train.de.gz,{place}/train.en.gz"
    assert settings["data__validation_source"] == f"lines:{place}/dev.de.gz,{place}/dev.en.gz"
    assert settings["train__num_steps"] == 7 and [one[0] for one in commands] == ["convert", "evaluate"]
    (task,) = json.loads((tmp_path / "suite.json").read_text())["tasks"]
    assert task["data"] == f"lines:{place}/test_1.de.gz,{place}/test_1.en.gz"


@pytest.mark.slow
def test_a_row_of_sentences_trains_from_random_weights(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The kind of a question is its first word: a few passes learn it, and the curve falls."""
    words = [f"word{n}" for n in range(3_500)]
    kinds = ["who", "when", "where"]
    lines = [f"{n % 3} {kinds[n % 3]} {words[2 * n % 3500]} {words[(2 * n + 1) % 3500]} ?\n" for n in range(2_000)]
    put(data, "classify/sentconv/TREC.train.all.gz", "".join(lines))
    put(data, "classify/sentconv/TREC.test.all.gz", "".join(lines[:90]))
    accuracies = sentences.Classification("trec", "?", 100.0, 100.0, "Because.", {0: "trec"}).measure(tmp_path)
    assert accuracies[0].ours == 100.0
    curve = json.loads((tmp_path / CURVE).read_text())["lines"]
    assert curve[-1][1] < 0.5 * curve[0][1]
