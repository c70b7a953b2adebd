"""Halves of surrogate pairs in inputs of a model: read, and returned, as the question marks that replace them."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers import tiny
from helpers.golden_pipelines import write_model
from lm_research import generate, pipeline, predict
from lm_research.config import resolve
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer

HALF, MARK = "the \ud800 king", "the ? king"
MASKED = {"\ud800 [MASK]": "? [MASK]"}
PAIR = {"text": HALF, "text_pair": "a \udfff"}
ASKED = {"question": "who\ud800", "context": "the \udc80 river? who"}
SOURCE = {"source_sentence": HALF, "sentences": [HALF, "bread"]}


def marked(value: Any) -> Any:
    """With question marks, by another route: through JSON's escapes, which can contain halves."""
    text = json.dumps(value)
    for half in ("\\ud800", "\\udfff", "\\udc80"):
        text = text.replace(half, "?")
    return json.loads(text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("models")
    found = {name: write_model(name, root / name) for name in ("masked", "classes", "inference", "tags", "features")}
    tokenizer = train_tokenizer(
        iter(["the king visits the river? who? a queen\n"] * 20),
        resolve({"tokenizer": {"type": "byte_bpe", "vocab_size": 270}}).tokenizer,
    )
    plain = tiny.model("gpt2")
    definition = define(plain.arch.replace(vocab_size=270, max_length=64), plain.head)
    found["causal"] = root / "causal"
    tokenizer.save_files(found["causal"])
    lm = LanguageModel(definition, tiny.random_params(definition, 0, 0.3), "gpt2", {}, load_tokenizer(found["causal"]))
    lm.save_native(found["causal"])
    return found


CASES = [
    ("masked", "fill-mask", "\ud800 [MASK] king", {"targets": ["king", "queen"]}),
    ("classes", "text-classification", [HALF], {}),
    ("classes", "text-classification", PAIR, {}),
    ("inference", "zero-shot-classification", HALF, {"candidate_labels": ["food\ud800", "travel"]}),
    ("tags", "token-classification", HALF, {"ignore_labels": []}),
    ("features", "feature-extraction", HALF, {}),
    ("features", "sentence-similarity", SOURCE, {"pooling": "mean"}),
    ("causal", "zero-shot-classification", HALF, {"candidate_labels": ["a\ud800", "b"]}),
    ("causal", "text-generation", HALF, {"max_new_tokens": 3, "prefix": "\udfff"}),
]


@pytest.mark.parametrize(("model", "task", "inputs", "options"), CASES)
def test_pipelines(
    model: str, task: str, inputs: Any, options: dict[str, Any], folders: dict[str, pathlib.Path]
) -> None:
    pipe = pipeline(task, folders[model])
    found = pipe(inputs, **options)
    assert found == pipe(marked(inputs), **marked(options))
    json.dumps(found, ensure_ascii=False).encode()


def test_question_answering(folders: dict[str, pathlib.Path]) -> None:
    pipe = pipeline("question-answering", lm_research.from_pretrained(folders["features"], head="span"))
    found = pipe(ASKED)
    assert found == pipe(marked(ASKED)) and found["answer"] == marked(ASKED)["context"][found["start"] : found["end"]]


def test_a_model_itself(folders: dict[str, pathlib.Path]) -> None:
    lm = lm_research.from_pretrained(folders["causal"])
    given = dict(max_new_tokens=3)
    assert lm.generate(prompts=[HALF, "a"], **given) == lm.generate(prompts=[MARK, "a"], **given)
    assert list(lm.stream(HALF, **given)) == list(lm.stream(MARK, **given))
    scores = [lm.score(text, [f" {text}"])[0] for text in (HALF, MARK)]
    np.testing.assert_array_equal(*scores)
    features = lm_research.from_pretrained(folders["features"])
    vectors = [
        features.embed([text], pooling="mean", prompt=prompt) for text, prompt in ((HALF, "\ud800"), (MARK, "?"))
    ]
    np.testing.assert_array_equal(*vectors)
    for stop in ("\ud800", ["a", "b\udfff"]):  # as a question mark it would stop at each of these
        with pytest.raises(UserError, match="stop_strings holds half a character"):
            lm.generate(prompts="a", stop_strings=stop, **given)


def test_predict(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "the \\ud800 king"}\n{"text": "bread"}\n')
    flags = ["--task=zero-shot-classification", f"--model={folders['inference']}", f"--input={tmp_path}/in.jsonl"]
    output = tmp_path / "out.jsonl"
    assert predict.main([*flags, f"--output={output}", "--candidate_labels=food,travel"]) == 0
    assert "question marks in 1 records" in capsys.readouterr().err
    assert [json.loads(line)["input"] for line in output.read_text().splitlines()] == [MARK, "bread"]
    for labels in ('["food", "\\ud800"]', "food,\udcff"):
        assert predict.main([*flags, f"--output={tmp_path}/other.jsonl", f"--candidate_labels={labels}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_generate(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "the \\ud800 king"}\n')
    flags = [f"--model={folders['causal']}", "--max_new_tokens=2"]
    output = tmp_path / "out.jsonl"
    assert generate.main([*flags, f"--input={tmp_path}/in.jsonl", f"--output={output}"]) == 0
    assert "question marks in 1 records" in capsys.readouterr().err
    assert json.loads(output.read_text())["prompt"] == MARK
    for more in (
        ["--prompt=\udce9"],
        ["--prompt=a", '--stop_strings=["\\ud800"]'],
        ["--prompt=a", "--seed=" + "[" * 9999],
    ):
        assert generate.main([*flags, *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and sys.getrecursionlimit() < 9999
