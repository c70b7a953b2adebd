"""Pipelines answer as transformers' do, see goldens/make_goldens.py."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from helpers.golden_pipelines import MODELS, write_model
from lm_research import pipeline
from lm_research.pipelines.base import Pipeline

CASES = [(name, number) for name, entry in MODELS.items() for number in range(len(entry["cases"]))]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pipeline of a model and task, made once."""

    @functools.cache
    def made(name: str, task: str) -> Pipeline:
        return pipeline(task, write_model(name, tmp_path_factory.mktemp("models") / name))

    return made


def assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-5)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize(("name", "number"), CASES)
def test_answers_match_transformers(name: str, number: int, make: Any) -> None:
    case = MODELS[name]["cases"][number]
    assert_alike(make(name, case["task"])(case["inputs"], **case["options"]), case["answers"])


def test_one_input_several_and_a_generator(make: Any) -> None:
    case = MODELS["classes"]["cases"][0]
    classify = make("classes", "text-classification")
    assert_alike(classify(case["inputs"][0]), [case["answers"][0]])  # so does transformers 5.24 for one text
    read: list[str] = []

    def texts() -> Any:
        for text in case["inputs"]:
            read.append(text)
            yield text

    answers = classify(texts(), batch_size=1)
    assert_alike(next(answers), case["answers"][0])
    assert len(read) == 1  # no further than was requested
    assert_alike(list(answers), case["answers"][1:])


def test_batches_change_nothing(make: Any) -> None:
    case = MODELS["tags"]["cases"][4]
    for size in (1, 2, 3):
        found = make("tags", "token-classification")(case["inputs"], batch_size=size, **case["options"])
        assert_alike(found, case["answers"])
