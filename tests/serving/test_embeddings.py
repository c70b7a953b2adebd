"""Embeddings over HTTP, of a run with its own tokenizer, and the attentions of its inputs."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from serving_clients import Running

import lm_research
from helpers import tiny, toys
from lm_research.pretrained import LanguageModel
from lm_research.serving.app import make_app


@pytest.fixture(scope="module")
def running(bert_run: pathlib.Path) -> Iterator[Running]:
    found = Running(make_app(lm_research.from_pretrained(bert_run), "bert"))
    yield found
    found.stop()


@pytest.mark.parametrize("texts", ["the king", ["the king", "a queen went out to the people " * 9]])
def test_embeddings_match_the_run(running: Running, texts: str | list[str]) -> None:
    lm = running.server.lm
    answer = running.post("/v1/embeddings", {"input": texts, "model": "bert"}).json()
    rows = lm.embed([texts] if isinstance(texts, str) else texts)
    assert [one["index"] for one in answer["data"]] == list(range(len(rows)))
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], rows, atol=1e-6)
    same = running.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"}).json()["data"]
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in same]
    np.testing.assert_allclose(decoded, rows, atol=1e-6)
    tokens = sum(len(lm.tokenizer.encode(text)) for text in ([texts] if isinstance(texts, str) else texts))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_token_ids_are_embedded_unchanged(running: Running) -> None:
    """One list of them is one text."""
    lm = running.server.lm
    ids = [[5, 6, 7, 8], [9, 10]]
    answer = running.post("/v1/embeddings", {"input": ids}).json()
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], lm.embed(ids), atol=1e-6)
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    (one,) = running.post("/v1/embeddings", {"input": ids[0]}).json()["data"]
    np.testing.assert_allclose(one["embedding"], lm.embed(ids)[0], atol=1e-6)
    (text,) = lm.inputs(["the king"])["input_ids"].tolist()
    mask = lm.inputs(["the king"])["attention_mask"][0]
    framed = [token for token, real in zip(text, mask, strict=True) if real]
    np.testing.assert_allclose(lm.embed([framed]), lm.embed(["the king"]), atol=1e-6)


def test_invalid_options_of_a_task_are_refused(running: Running) -> None:
    task = running.server.tasks[0]
    answer = running.post("/v1/predict", {"task": task, "inputs": "the king", "options": {"batch_size": 0}})
    assert answer.status_code == 400 and "batch_size=0" in answer.json()["error"]["message"]


def test_attentions_are_of_the_text_with_its_special_tokens(running: Running) -> None:
    seen = running.post("/v1/inspect", {"text": "the king"}).json()
    assert (seen["tokens"][0], seen["tokens"][-1]) == ("[CLS]", "[SEP]")
    layer = np.array(seen["attentions"])[0]
    assert layer.shape[1:] == (len(seen["tokens"]),) * 2 and layer.sum(-1) == pytest.approx(1.0, abs=1e-3)


def test_texts_may_be_as_long_as_the_model() -> None:
    """Rows are padded to multiples of 32, but never beyond the model's 40 positions."""
    model = toys.definition(257, max_length=40)
    lm = LanguageModel(model, tiny.random_params(model, 0, 0.3), "gpt2", {}, tokenizer=toys.ByteTokenizer())
    assert lm.inputs(["x" * 35, "y"])["input_ids"].shape == (2, 40)
    assert lm.embed(["x" * 35]).shape == (1, model.arch.hidden_size)
