"""Pseudo-log-likelihood against a loop that hides one token at a time, and minimal pairs through the command."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_pipelines import write_model
from lm_research import evaluate
from lm_research.decoding.pseudo_likelihood import PseudoLikelihood, Sentence, common_tokens
from lm_research.errors import UserError

GOOD = ["the king visited spain", "who flows from the mountain ?", "the queen is good", "the river flows"]
BAD = ["the king visits of spain", "who flow from the mountain ?", "the queen is entail", "the river flow flow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_model("masked", folder / "masked")
    write_model("classes", folder / "classes")
    records = [
        {"sentence_good": good, "sentence_bad": bad, "UID": "agreement" if n % 2 else "argument"}
        for n, (good, bad) in enumerate(zip(GOOD, BAD, strict=True))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"name": "blimp", "task": "minimal_pairs", "data": "pairs.jsonl", "slice_key": "UID"}
    tasks = [task, task | {"name": "crows", "scored": "shared"}]
    (folder / "suite.json").write_text(json.dumps({"tasks": tasks}))
    return folder


def one_at_a_time(lm: Any, ids: list[int]) -> list[float]:
    """The log P(token | all others) of all but the first and last, [CLS] and [SEP], each by a separate call."""
    found = []
    for place in range(1, len(ids) - 1):
        hidden = [*ids[:place], lm.tokenizer.roles["mask"], *ids[place + 1 :]]
        padded, mask = [hidden + [0] * (16 - len(ids))], [[1] * len(ids) + [0] * (16 - len(ids))]
        logits = np.asarray(lm(input_ids=padded, attention_mask=mask)["logits"], np.float64)[0, place]
        found.append(logits[ids[place]] - np.log(np.exp(logits).sum()))
    return found


def test_each_token_given_all_others(folder: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(folder / "masked")
    pseudo = PseudoLikelihood(lm, rows=7)  # 24 tokens in all: sentences are split over programs
    found = pseudo(pseudo.encode(GOOD))
    for text, values in zip(GOOD, found, strict=True):
        ids = lm.tokenizer(text)["input_ids"]
        np.testing.assert_allclose(values, one_at_a_time(lm, np.ravel(ids).tolist()), atol=1e-5)


def test_shared_tokens_by_hand() -> None:
    """CLS a b c SEP and CLS a x y c SEP share a and c: places 1 and 3, and 1 and 4."""
    a, b = Sentence([2, 10, 11, 12, 3], [1, 2, 3]), Sentence([2, 10, 20, 21, 12, 3], [1, 2, 3, 4])
    assert [one.places for one in common_tokens(a, b)] == [[1, 3], [1, 4]]


def test_pairs_through_the_command(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given = [f"--model={folder}/masked", f"--suite={folder}/suite.json", f"--output={tmp_path}/out"]
    assert evaluate.main([*given, "--batch_size=3", "--resamples=10"]) == 0
    lm = lm_research.from_pretrained(folder / "masked")

    def sums(text):
        return sum(one_at_a_time(lm, np.ravel(lm.tokenizer(text)["input_ids"]).tolist()))

    right = [sums(good) > sums(bad) for good, bad in zip(GOOD, BAD, strict=True)]
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert tasks["blimp"]["scores"]["accuracy"]["mean"] == np.mean(right)
    assert tasks["blimp"]["groups"] == {
        "agreement": {"records": 2, "accuracy": np.mean(right[1::2])},
        "argument": {"records": 2, "accuracy": np.mean(right[::2])},
    }
    rows = [json.loads(line) for line in (tmp_path / "out/crows/predictions.jsonl").read_text().splitlines()]
    # "the king visited spain" and "the king visits of spain" share "the king visit" and "spain", of 5 and of 6 tokens.
    assert (rows[0]["good_tokens"], rows[0]["bad_tokens"]) == (4, 4)
    ids = np.ravel(lm.tokenizer(GOOD[0])["input_ids"]).tolist()
    values = one_at_a_time(lm, ids)
    assert rows[0]["good_nats"] == pytest.approx(sum(values[i] for i in (0, 1, 2, 4)), abs=1e-4)


def test_errors(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    given = [f"--model={folder}/classes", f"--suite={folder}/suite.json", f"--output={tmp_path}/out"]
    assert evaluate.main(given) == 2
    assert "needs a masked or a causal language model" in capsys.readouterr().err
    task = {"name": "a", "task": "minimal_pairs", "data": str(folder / "pairs.jsonl"), "good_key": "good"}
    (folder / "wrong.json").write_text(json.dumps({"tasks": [task]}))
    given = [f"--model={folder}/masked", f"--suite={folder}/wrong.json", f"--output={tmp_path}/other"]
    assert evaluate.main(given) == 2
    assert "pairs.jsonl, line 1 has no sentence in field 'good'; its fields: sentence_good," in capsys.readouterr().err
    lm = lm_research.from_pretrained(folder / "masked")
    with pytest.raises(UserError, match="has 42 tokens, special ones included"):
        PseudoLikelihood(lm).encode(["the " * 40])
    with pytest.raises(UserError, match="needs a masked language model"):
        PseudoLikelihood(lm_research.from_pretrained(folder / "classes"))
