"""`problem_type` of config.json decides the loss of a classification: transformers' losses are in problem_type_goldens/problem_types.json."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers import golden_models
from helpers.golden_models import Golden
from lm_research.errors import PretrainedError, UserError
from lm_research.pretrained import LanguageModel

FOLDER = pathlib.Path(__file__).parent / "problem_type_goldens"
STORED = json.loads((FOLDER / "problem_types.json").read_text())


def load(folder: pathlib.Path, case: dict[str, Any], **changes: Any) -> LanguageModel:
    model, outputs = STORED["models"][case["kind"]], case["outputs"]
    names = {"id2label": {str(i): f"L{i}" for i in range(outputs)}, "label2id": {f"L{i}": i for i in range(outputs)}}
    config = json.dumps(model["config"] | names | {"problem_type": case["problem_type"]} | changes)
    weights = {
        name: (outputs, *shape[1:]) if shape[0] == 1 else tuple(shape) for name, shape in model["weights"].items()
    }
    golden_models.write_checkpoint(folder, Golden("", case["kind"], "", "", config, weights, {}, {}, {}, {}))
    return lm_research.from_pretrained(folder)


def named(case: dict[str, Any]) -> str:
    return f"{case['kind'].removesuffix('ForSequenceClassification')}-{case['problem_type']}-{np.shape(case['labels'])}"


@pytest.mark.parametrize("case", STORED["cases"], ids=named)
def test_losses_match_transformers(case: dict[str, Any], tmp_path: pathlib.Path) -> None:
    lm = load(tmp_path, case)
    loss = lm(input_ids=np.array(STORED["inputs"]), labels=case["labels"])["loss"]
    assert float(loss) == pytest.approx(case["loss"], rel=2e-5)


BERT = {named(case): case for case in STORED["cases"] if case["kind"].startswith("Bert")}
INPUTS = np.array(STORED["inputs"])


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("Bert-regression-(3, 3)", [0.5, 1.0, 2.0], "regression with 3 outputs takes 3 for each of 3 rows"),
        ("Bert-None-(3, 3)", [0.5, 1.0, 2.0], "multi_label_classification with 3 outputs takes 3 for each of"),
        ("Bert-single_label_classification-(3,)", [0.0, 1.0, 2.0], "takes integers"),
        ("Bert-single_label_classification-(3,)", [0, 1, 3], "labels holds 3, outside of 0 to 2"),
        ("Bert-single_label_classification-(3,)", [0, 1], "takes one number for each of 3 rows"),
    ],
)
def test_labels_of_another_problem_are_refused(name: str, labels: Any, words: str, tmp_path: pathlib.Path) -> None:
    """Cases for which transformers raises an error, or broadcasts with a warning."""
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        load(tmp_path, BERT[name])(input_ids=INPUTS, labels=np.array(labels))


def test_invalid_problem_types(tmp_path: pathlib.Path) -> None:
    case = BERT["Bert-None-(3,)"]
    with pytest.raises(PretrainedError, match="problem_type is 'regresion'. Did you mean 'regression'"):
        load(tmp_path, case, problem_type="regresion")
    one = {"problem_type": "single_label_classification"}
    with pytest.raises(PretrainedError, match="with one label"):
        load(tmp_path, BERT["Bert-regression-(3, 1)"], **one)
    load(tmp_path, case, **one)
    value = lm_research.from_pretrained(tmp_path, num_labels=1)  # a new head, for which that cannot hold
    assert value.config.problem_type is None
    assert float(value(input_ids=INPUTS, labels=[0.0, 0.0, 0.0])["loss"]) == pytest.approx(
        float(np.square(value(input_ids=INPUTS)["logits"]).mean())
    )
