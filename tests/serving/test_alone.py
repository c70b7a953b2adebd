"""Beams and other strategies that cannot share slots are served in parallel with them: the texts of `generate`, without long waits."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from serving_clients import Running, events, wait

from helpers import toys
from lm_research.serving import sequential_worker
from lm_research.serving.app import Limits, make_app


class LetterTokenizer(toys.ByteTokenizer):
    """Each byte is a character, so that different tokens are different texts."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("latin-1")) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(token for token in ids if token < 256).decode("latin-1")


LM = toys.language_model(vocab=257, scale=0.3, tokenizer=LetterTokenizer())
LIMITS = Limits(slots=2, length=32, max_tokens=16, max_queue=1, max_body_bytes=2000)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running(make_app(LM, "toy", LIMITS))
    yield found
    found.stop()


def test_beams_match_generate(running: Running) -> None:
    body = {"prompt": ["abc", "q"], "max_tokens": 7, "num_beams": 3, "n": 2, "length_penalty": 0.5, "logprobs": 0}
    answer = running.post("/v1/completions", body).json()
    output = LM.generate(
        prompts=["abc", "q"],
        max_new_tokens=7,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=0.5,
        output_logprobs=True,
        return_dict_in_generate=True,
    )
    assert [choice["text"] for choice in answer["choices"]] == output.texts
    assert len(set(output.texts)) == 4
    for choice, tokens, logprobs in zip(answer["choices"], output.new_tokens, output.logprobs, strict=True):
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs.tolist(), abs=1e-4)
        assert len(choice["logprobs"]["tokens"]) == len(tokens) and choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == sum(map(len, output.new_tokens))


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (
            {"temperature": 0, "no_repeat_ngram_size": 1, "bad_words_ids": [[167], [98, 99]]},
            {"no_repeat_ngram_size": 1, "bad_words_ids": [[167], [98, 99]]},
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "n": 4},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 4},
        ),
        ({"num_beams": 4, "force_words_ids": [[120, 121]]}, {"num_beams": 4, "force_words_ids": [[120, 121]]}),
        (
            {"num_beams": 2, "temperature": 0.8, "seed": 3, "min_p": 0.001, "logit_bias": {"65": 3, "66": 3}},
            {
                "num_beams": 2,
                "temperature": 0.8,
                "seed": 3,
                "min_p": 0.001,
                "sequence_bias": {(65,): 3.0, (66,): 3.0},
                "do_sample": True,
                "top_k": 0,
            },
        ),
    ],
)
def test_other_strategies_match_generate(running: Running, fields: dict[str, Any], options: dict[str, Any]) -> None:
    answer = running.post("/v1/completions", {"prompt": "ab", "max_tokens": 6, **fields})
    assert answer.status_code == 200, answer.text
    assert [choice["text"] for choice in answer.json()["choices"]] == LM.generate(
        prompts="ab", max_new_tokens=6, **options
    )


def test_the_likeliest_of_several_that_run_outside_the_slots(running: Running) -> None:
    body = {"prompt": "ab", "max_tokens": 6, "seed": 4, "no_repeat_ngram_size": 2}
    every = running.post("/v1/completions", body | {"n": 3, "logprobs": 1}).json()["choices"]
    best = max(every, key=lambda choice: sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["tokens"]))
    (found,) = running.post("/v1/completions", body | {"best_of": 3}).json()["choices"]
    assert found["text"] == best["text"] and len({choice["text"] for choice in every}) == 3
    top = every[0]["logprobs"]["top_logprobs"][0]
    assert max(top.values()) == pytest.approx(toys.Exact(LM).next([97, 98]).max(), abs=1e-4)


def test_a_stream_of_beams_is_sent_at_its_end(running: Running) -> None:
    body = {"prompt": "ab", "max_tokens": 6, "num_beams": 3}
    (whole,) = running.post("/v1/completions", body).json()["choices"]
    with httpx.stream("POST", running.url + "/v1/completions", json={**body, "stream": True}, timeout=60) as response:
        (piece,) = events(response)
    assert piece["choices"][0]["text"] == whole["text"] and piece["choices"][0]["finish_reason"] == "length"


def test_stop_strings_cut_and_copies_that_cannot_differ_are_equal(running: Running) -> None:
    text = LM.generate(prompts="q", max_new_tokens=16, no_repeat_ngram_size=3)[0]
    body = {"prompt": "q", "max_tokens": 16, "temperature": 0, "no_repeat_ngram_size": 3, "stop": text[4:6], "n": 2}
    choices = running.post("/v1/completions", body).json()["choices"]
    assert [choice["text"] for choice in choices] == [text[: text.find(text[4:6])]] * 2
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 2


def test_slots_continue_during_a_search_and_a_disconnect_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is held up between two of its pieces."""
    running = Running(make_app(LM, "toy", LIMITS))
    go, pieces, real = threading.Semaphore(0), [], sequential_worker.in_pieces

    def slow(*args: Any, **options: Any) -> Iterator[Any]:
        for piece in real(*args, **options):
            pieces.append(piece)
            go.acquire()
            yield piece

    monkeypatch.setattr(sequential_worker, "in_pieces", slow)
    try:
        body = {"prompt": "a", "max_tokens": 16, "num_beams": 2, "stream": True}
        with httpx.stream("POST", running.url + "/v1/completions", json=body, timeout=60):
            wait(lambda: len(pieces) == 1)
            assert "lm_alone_active 1.0" in httpx.get(running.url + "/metrics").text
            greedy = running.post("/v1/completions", {"prompt": "ab", "max_tokens": 5, "temperature": 0}).json()
            assert greedy["choices"][0]["text"] == LM.generate(prompts="ab", max_new_tokens=5)[0]
            assert pieces == [None]
        wait(lambda: "lm_disconnects_total 1.0" in httpx.get(running.url + "/metrics").text)
        go.release()
        wait(lambda: running.server.sequential.active == 0)
        assert pieces == [None]
    finally:
        for _ in range(50):
            go.release()
        running.stop()


def test_a_full_queue_is_429_and_a_late_search_504(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(make_app(LM, "toy", Limits(slots=1, length=32, max_tokens=16, max_queue=0, max_seconds=0.5)))
    go, real = threading.Event(), sequential_worker.in_pieces

    def slow(*args: Any, **options: Any) -> Iterator[Any]:
        go.wait(30)
        return real(*args, **options)

    monkeypatch.setattr(sequential_worker, "in_pieces", slow)
    body = {"prompt": "a", "num_beams": 2}
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            held = [clients.submit(running.post, "/v1/completions", body)]
            wait(lambda: running.server.sequential.active == 1)
            held.append(clients.submit(running.post, "/v1/completions", body))
            wait(lambda: running.server.sequential.waiting == 1)
            refused = running.post("/v1/completions", body)
            assert refused.status_code == 429 and refused.headers["retry-after"]
            time.sleep(0.6)
            go.set()
            assert [answer.result().status_code for answer in held] == [504, 504]
    finally:
        go.set()
        running.stop()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_beams": 2, "n": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_beams": 17}, "from 1 to 16"),
        ({"num_beams": 2, "stop": "a"}, "stop does not work with num_beams"),
        ({"num_beams": 2, "logprobs": 1}, "log-probabilities of the chosen tokens"),
        ({"num_beams": 4, "num_beam_groups": 3}, "not a multiple"),
        ({"force_words_ids": [[1]]}, "needs beams"),
        ({"num_beams": 2, "force_words_ids": [[1, 2, 3]], "max_tokens": 2}, "has 3 tokens"),
        ({"num_beams": 2, "bad_words_ids": [[1, 999]]}, "no token 999"),
        ({"bad_words_ids": [1]}, "lists of token ids"),
        ({"bad_words_ids": []}, "lists of token ids"),
        ({"num_beams": 2, "best_of": 3}, "neither with stream nor with num_beams"),
        ({"penalty_alpha": 0.6}, "contrastive search"),
    ],
)
def test_errors_of_other_strategies_have_a_reason(running: Running, fields: dict[str, Any], reason: str) -> None:
    answer = running.post("/v1/completions", {"prompt": "a", "max_tokens": 4, **fields})
    assert answer.status_code == 400 and reason in answer.json()["error"]["message"], answer.text
