"""The options of each request apply to its row only: filters, penalties, biases, lengths, the likeliest of several."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving_clients import Running

from helpers import toys
from lm_research.serving.app import Limits, make_app

LM = toys.language_model(vocab=257, scale=0.3, tokenizer=toys.ByteTokenizer())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running(make_app(LM, "toy", Limits(slots=4, length=32, max_tokens=16, max_queue=64)))
    yield found
    found.stop()


# Fields of a request, and the arguments of generate that mean the same.
WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min_p": 0.3}, {"min_p": 0.3}),
    ({"typical_p": 0.4, "epsilon_cutoff": 0.002}, {"typical_p": 0.4, "epsilon_cutoff": 0.002}),
    ({"top_p": 0.3}, {"top_p": 0.3}),
    (
        {"logit_bias": {"65": 6, "66": 5.5}, "presence_penalty": 3, "frequency_penalty": 1, "repetition_penalty": 1.5},
        {
            "sequence_bias": {(65,): 6.0, (66,): 5.5},
            "presence_penalty": 3.0,
            "frequency_penalty": 1.0,
            "repetition_penalty": 1.5,
        },
    ),
    ({}, {}),
]


def test_rows_side_by_side_match_generate(running: Running) -> None:
    """All options at once in four slots, sampled with one seed: each gives what it gives alone."""
    prompts = [f"row {number}" for number in range(len(WAYS))]
    bodies = [{"prompt": text, "max_tokens": 9, "seed": 7, **ways[0]} for text, ways in zip(prompts, WAYS, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(len(WAYS)) as clients:
        answers = list(clients.map(lambda body: running.post("/v1/completions", body), bodies))
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    drawn = {"max_new_tokens": 9, "seed": 7, "do_sample": True, "top_k": 0}
    for text, prompt, (_, options) in zip(texts, prompts, WAYS, strict=True):
        assert [text] == LM.generate(prompts=prompt, **drawn, **options), options
    same = [text == plain for text, plain in zip(texts, LM.generate(prompts=prompts, **drawn), strict=True)]
    assert same == [False] * 4 + [True]


def test_a_bias_bans_and_forces(running: Running) -> None:
    """-100 is a ban, 100 an exclusive selection; log-probabilities stay the model's own."""
    body = {"prompt": "ab", "max_tokens": 4, "temperature": 0, "logprobs": 0}
    free = running.post("/v1/completions", body).json()["choices"][0]
    tokens = LM.generate([[97, 98]], max_new_tokens=4)[0, 2:].tolist()
    banned = running.post("/v1/completions", body | {"logit_bias": {str(token): -100 for token in tokens}}).json()
    forced = running.post("/v1/completions", body | {"logit_bias": {"65": 100}}).json()["choices"][0]
    exact = toys.Exact(LM).next([97, 98])
    assert forced["text"] == "AAAA" and forced["logprobs"]["token_logprobs"][0] == pytest.approx(exact[65], abs=1e-4)
    assert free["logprobs"]["token_logprobs"][0] == pytest.approx(exact.max(), abs=1e-4)
    ban = sorted(exact[[token for token in range(257) if token not in tokens]])
    assert banned["choices"][0]["logprobs"]["token_logprobs"][0] == pytest.approx(ban[-1], abs=1e-4)


def test_texts_have_a_minimum_length(running: Running) -> None:
    """The end token is made the best one; min_tokens holds it off."""
    body = {"prompt": "ab", "max_tokens": 8, "temperature": 0, "logit_bias": {"256": 100}}
    ended = running.post("/v1/completions", body).json()
    later = running.post("/v1/completions", body | {"min_tokens": 3}).json()
    assert ended["choices"][0]["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == 1
    assert later["choices"][0]["finish_reason"] == "stop" and later["usage"]["completion_tokens"] == 4


def test_best_of_returns_the_likeliest(running: Running) -> None:
    """By mean log-probability per token, as in OpenAI's specification; all texts are counted."""
    body = {"prompt": "ab", "max_tokens": 5, "seed": 1}
    every = running.post("/v1/completions", body | {"n": 5, "logprobs": 0}).json()["choices"]
    means = [np.mean(choice["logprobs"]["token_logprobs"]) for choice in every]
    order = sorted(range(5), key=lambda number: -means[number])
    answer = running.post("/v1/completions", body | {"n": 2, "best_of": 5}).json()
    assert [choice["text"] for choice in answer["choices"]] == [every[number]["text"] for number in order[:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1] and order[:2] != [0, 1]
    assert answer["choices"][0]["logprobs"] is None and answer["usage"]["completion_tokens"] == 25


def test_offsets_are_places_in_the_text(running: Running) -> None:
    body = {"prompt": "ab", "max_tokens": 5, "temperature": 0, "logprobs": 1, "logit_bias": {"65": 50, "66": 50}}
    choice = running.post("/v1/completions", body | {"frequency_penalty": 1}).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4] and "".join(logprobs["tokens"]) == choice["text"]
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert top[token] == value and len(top) == 2  # the likeliest, and the one that was forced


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("completions", {"logit_bias": {"x": 1}}, "by token id"),
    ("completions", {"logit_bias": {"5": 101}}, "-100 to 100"),
    ("completions", {"logit_bias": {"257": 1}}, "no token 257"),
    ("completions", {"logit_bias": {str(n): 1 for n in range(301)}}, "at most 300"),
    ("completions", {"min_p": 1.5}, "must be from 0 to 1"),
    ("completions", {"typical_p": 0}, "above 0"),
    ("completions", {"logit_bias": {"9" * 5000: 1}}, "by token id"),
    ("completions", {"repetition_penalty": 0}, "from 0.01 to 100"),
    ("completions", {"repetition_penalty": 10**400}, "from 0.01 to 100"),
    ("completions", {"best_of": 2, "stream": True}, "works neither with stream"),
    ("completions", {"best_of": 1, "n": 2}, "best_of is 1, but n is 2"),
    ("completions", {"suffix": "end"}, "forwards only"),
    ("completions", {"min_tokens": -1}, "from 0"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, "no grammar"),
    ("chat/completions", {"tools": [{"type": "function"}]}, "not parsed"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is read"),
    ("embeddings", {"input": "a", "dimensions": 8}, "own width"),
]


@pytest.mark.parametrize(("path", "fields", "reason"), MISTAKES)
def test_errors_of_fields_have_a_reason(running: Running, path: str, fields: dict[str, Any], reason: str) -> None:
    usual = {"completions": {"prompt": "a"}, "chat/completions": {"messages": [{"role": "user", "content": "a"}]}}
    answer = running.post(f"/v1/{path}", usual.get(path, {}) | fields)
    assert answer.status_code == 400 and reason in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("body", [b'{"prompt": "\\ud800"}', b'{"prompt": "a", "top_p": 1e999}', b'{"prompt": "\xff"}'])
def test_what_is_neither_text_nor_number_is_refused(running: Running, body: bytes) -> None:
    import httpx

    answer = httpx.post(running.url + "/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_fields_without_effect_are_accepted(running: Running) -> None:
    """Clients send them with every request."""
    body = {
        "prompt": "a",
        "max_tokens": 1,
        "suffix": None,
        "store": False,
        "metadata": {},
        "num_beams": 1,
        "best_of": 1,
    }
    assert running.post("/v1/completions", body).status_code == 200
