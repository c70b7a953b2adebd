"""The shipped recipes against the real schemas of their data sets, filled with random records (no download)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from helpers.train_helpers import ROOT
from lm_research.config import loading, resolve
from lm_research.data.sources import tfds_source
from lm_research.errors import DataError
from lm_research.tasks import TASKS
from lm_research.tasks.records import read_records

# Task of GLUE -> its classes in the order of the data set, none for values (Wang et al. 2018, table 1).
GLUE = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "stsb": None,
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "mnli_mismatched": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Data sets of 40 random records, as if they had been prepared."""
    monkeypatch.setattr(tfds_source, "_prepare", lambda builder, name: None)
    with tfds.testing.mock_data(num_examples=40):
        yield


@pytest.mark.parametrize("name", GLUE)
def test_glue(name: str, mocked: None) -> None:
    config = resolve(loading.load(f"{ROOT}/configs/finetune/classification.py:{name}"))
    reader = TASKS["classification"].reader(config)
    for source in (config.task.train, config.task.validation):
        records = list(read_records(source, config))
        assert len(records) == 40
        assert all(len(reader.texts(record)) == (2 if config.task.pair_key else 1) for record in records)
        assert set(reader.label_names(records)) <= set(GLUE[name] or [])
        if GLUE[name] is None:
            assert all(isinstance(record.fields["label"], float) for record in records)


def test_an_example_without_its_label_is_named(mocked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test splits of GLUE hide labels behind -1."""
    config = resolve(loading.load(f"{ROOT}/configs/finetune/classification.py:sst2"))
    monkeypatch.setattr(tfds_source, "_open", lambda *given: [{"sentence": b"a text", "label": -1, "idx": 0}])
    (record,) = read_records("tfds:glue/sst2@test", config)
    with pytest.raises(DataError, match="tfds:glue/sst2@test, example 0: field 'label' is None, not a label"):
        TASKS["classification"].reader(config).label_names([record])


@pytest.mark.parametrize(("name", "kinds"), [("conll2003", "PER ORG LOC MISC"), ("wikiann_de", "PER ORG LOC")])
def test_tags_of_a_data_set_are_their_names(name: str, kinds: str, mocked: None) -> None:
    config = resolve(loading.load(f"{ROOT}/configs/finetune/tagging.py:{name}"))
    names = {"O", *(f"{place}-{kind}" for place in "BI" for kind in kinds.split())}
    for source in (config.task.train, config.task.validation, config.task.test):
        records = list(read_records(source, config))
        found = {tag for record in records for tag in record.fields[config.task.label_key]}
        assert len(records) == 40 and found and found <= names
        assert all(isinstance(word, str) for record in records for word in record.fields["tokens"])


def test_stsb_as_pairs_with_cosines(mocked: None) -> None:
    config = resolve(loading.load(f"{ROOT}/configs/finetune/embedding.py:stsb"))
    record = next(read_records(config.task.validation, config))
    record.fields["label"] = 4.0
    reader = TASKS["embedding"].reader(config)
    assert len(reader.texts(record)) == 2 and reader._cosine(record) == 0.8  # of 0 to 5


def test_xnli_in_a_language(mocked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """English pairs to train on, and a test set whose records hold all languages; a record of its real schema."""
    config = resolve(loading.load(f"{ROOT}/configs/finetune/classification.py:xnli_de"))
    reader = TASKS["classification"].reader(config)
    record = next(read_records(config.task.train, config))
    assert reader.texts(record) == [record.fields["premise"], record.fields["hypothesis"]]
    languages = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
    example = {
        "premise": {name: f"premise {name}".encode() for name in languages},
        "hypothesis": {
            "language": np.array([name.encode() for name in languages], object),
            "translation": np.array([f"hypothesis {name}".encode() for name in languages], object),
        },
        "label": 2,
    }
    monkeypatch.setattr(tfds_source, "_open", lambda *given: [example])
    (record,) = read_records(config.task.test, config)
    assert reader.texts(record) == ["premise de", "hypothesis de"]
    assert record.fields["label"] == GLUE["mnli"][2]
    wrong = resolve(loading.load(f"{ROOT}/configs/finetune/classification.py:xnli_xx"))
    with pytest.raises(DataError, match="example 0, premise has no field 'xx'.*in --config.task.text_key"):
        TASKS["classification"].reader(wrong).texts(record)


@pytest.mark.parametrize("name", ["squad", "squad2"])
def test_squad(name: str, mocked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of the data set's real schema: a sequence of answers comes as arrays of texts and of places."""
    answers = {"answer_start": np.array([4, 4], np.int32), "text": np.array([b"cat", b"cat sat"], object)}
    example = {
        "id": b"7",
        "title": b"t",
        "question": b"Who?",
        "context": "The cat sat \u00fc.".encode(),
        "answers": answers,
    }
    example |= {"is_impossible": np.bool_(False), "plausible_answers": answers} if name == "squad2" else {}
    monkeypatch.setattr(tfds_source, "_open", lambda *given: [example])
    config = resolve(loading.load(f"{ROOT}/configs/finetune/question_answering.py:{name}"))
    (record,) = read_records(config.task.train, config)
    question = TASKS["question_answering"].reader(config).question(record)
    assert question == ("7", "Who?", "The cat sat \u00fc.", [("cat", 4), ("cat sat", 4)])


# Name of a recipe -> the text that a source begins with.
PAIRS = {
    "wmt14_en_de": "translate English to German: ",
    "wmt16_en_ro": "translate English to Romanian: ",
    "cnn_dailymail": "summarize: ",
    "xsum": "summarize: ",
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, mocked: None) -> None:
    config = resolve(loading.load(f"{ROOT}/configs/finetune/seq2seq.py:{name}"))
    reader = TASKS["seq2seq"].reader(config)
    for source in (config.task.train, config.task.validation, config.task.test):
        records = list(read_records(source, config))
        assert len(records) == 40
        for record in records:
            text, target = reader.texts(record)
            kept = reader.metadata(record)
            assert text == PAIRS[name] + kept["source"] and target == kept["target"] != kept["source"]
            assert reader.is_valid(record)
