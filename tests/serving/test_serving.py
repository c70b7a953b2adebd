"""A server and its clients over real connections: right answers, unmixed; slots released; errors answered with reasons."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from serving_clients import Running, events, wait

from helpers import toys
from lm_research import serve
from lm_research.serving.app import Limits, make_app

LM = toys.language_model(vocab=257, scale=0.3, tokenizer=toys.ByteTokenizer())
LIMITS = Limits(slots=4, length=32, max_tokens=16, max_queue=64, max_body_bytes=2000)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running(make_app(LM, "toy", LIMITS))
    yield found
    found.stop()


def test_32_clients_get_their_own_answers(running: Running) -> None:
    """The output of `generate` for each prompt, with greedy and sampled, short and long ones side by side."""
    orders = [
        {
            "prompt": "abcdefgh"[: 1 + number % 8] + str(number),
            "max_tokens": 3 + number % 9,
            "temperature": number % 2,
            "seed": number,
        }
        for number in range(32)
    ]

    expected: dict[str, str] = {}
    for drawn in (0, 1):
        own = [order for order in orders if order["temperature"] == drawn]
        sample = {"do_sample": True, "seed": [order["seed"] for order in own], "top_k": 0} if drawn else {}
        texts = [order["prompt"] for order in own]
        output = LM.generate(prompts=texts, max_new_tokens=11, return_dict_in_generate=True, **sample)
        for order, tokens in zip(own, output.new_tokens, strict=True):
            expected[order["prompt"]] = LM.tokenizer.decode(tokens[: order["max_tokens"]])
    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda order: running.post("/v1/completions", order), orders))
    assert [answer.status_code for answer in answers] == [200] * 32
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert texts == [expected[order["prompt"]] for order in orders]
    assert len(set(texts)) > 16


def test_a_row_does_not_depend_on_the_options_of_others(running: Running) -> None:
    """A sampled text is the same alone and next to rows with filters, penalties and log-probabilities."""
    plain = {"prompt": "same", "max_tokens": 12, "seed": 5}
    others = [
        {
            "prompt": "x",
            "max_tokens": 16,
            "top_p": 0.5,
            "top_k": 3,
            "presence_penalty": 1.5,
            "logprobs": 5,
            "seed": number,
        }
        for number in range(3)
    ]
    alone = running.post("/v1/completions", plain).json()["choices"]
    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        found = list(
            clients.map(lambda order: running.post("/v1/completions", order).json()["choices"], [*others, plain])
        )
    assert found[-1] == alone
    assert found[0] != found[1]


def test_log_probabilities_match_the_model(running: Running) -> None:
    answer = running.post("/v1/completions", {"prompt": "abc", "max_tokens": 4, "temperature": 0, "logprobs": 2}).json()
    found = answer["choices"][0]["logprobs"]
    output = LM.generate(prompts="abc", max_new_tokens=4, output_logprobs=True, return_dict_in_generate=True)
    assert found["token_logprobs"] == pytest.approx(output.logprobs[0].tolist(), abs=1e-4)
    exact = toys.Exact(LM)(b"abc")[0][-1]
    shares = exact - np.log(np.exp(exact).sum())
    assert max(found["top_logprobs"][0].values()) == pytest.approx(shares.max(), abs=1e-4)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_echoed_prompts_have_their_log_probabilities(running: Running) -> None:
    """Against a forward pass of the whole text; the first token has no context. This is how evaluation harnesses request likelihoods."""
    body = {"prompt": [[97, 98, 99, 100], [120]], "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": True}
    long, short = running.post("/v1/completions", body).json()["choices"]
    found = long["logprobs"]
    exact = toys.Exact(LM)([97, 98, 99, 100])[0]
    shares = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    said = int(shares[3].argmax())
    expected = [shares[place, token] for place, token in enumerate([98, 99, 100, said])]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    for place, top in enumerate(found["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(shares[place].max(), abs=1e-4)
    assert found["text_offset"] == [0, 1, 2, 3, 4] and found["tokens"][:4] == ["a", "b", "c", "d"]
    assert long["text"].startswith("abcd") and len(short["logprobs"]["tokens"]) == 2
    silent = running.post("/v1/completions", body | {"max_tokens": 0}).json()
    assert [choice["text"] for choice in silent["choices"]] == ["abcd", "x"] and silent["usage"][
        "completion_tokens"
    ] == 0
    assert silent["choices"][0]["logprobs"] == {name: values[:4] for name, values in found.items()}
    assert silent["choices"][0]["finish_reason"] == "length"
    bare = running.post("/v1/completions", body | {"logprobs": 0}).json()["choices"][0]["logprobs"]
    assert (
        bare["token_logprobs"] == found["token_logprobs"] and [len(top) for top in bare["top_logprobs"][1:]] == [1] * 4
    )
    refused = running.post("/v1/completions", body | {"stream": True})
    assert refused.status_code == 400 and "echo with logprobs is not supported with stream" in refused.text


def test_penalties_and_n_match_generate(running: Running) -> None:
    body = {"prompt": "ab", "max_tokens": 10, "seed": 3, "n": 3, "frequency_penalty": 2.0}
    found = [choice["text"] for choice in running.post("/v1/completions", body).json()["choices"]]
    assert found == LM.generate(
        prompts="ab", max_new_tokens=10, seed=3, do_sample=True, top_k=0, num_return_sequences=3, frequency_penalty=2.0
    )


def test_a_stream_joins_to_the_whole(running: Running) -> None:
    body = {"prompt": "stream", "max_tokens": 12, "seed": 2, "stop": "\ufffd\ufffd"}
    whole = running.post("/v1/completions", body).json()["choices"][0]
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", running.url + "/v1/completions", json=asked, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        pieces = list(events(response))
    assert "".join(piece["choices"][0]["text"] for piece in pieces[:-1]) == whole["text"]
    assert pieces[-2]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert pieces[-1]["usage"]["prompt_tokens"] == 6


def test_a_stop_string_ends_before_itself(running: Running) -> None:
    text = LM.generate(prompts="q", max_new_tokens=16)[0]
    stop = text[4:6]
    choice = running.post("/v1/completions", {"prompt": "q", "max_tokens": 16, "temperature": 0, "stop": stop}).json()[
        "choices"
    ][0]
    assert choice["text"] == text[: text.find(stop)] and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slot(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are blocked, so the text cannot have ended by itself."""
    running = Running(make_app(LM, "toy", LIMITS))
    try:
        batcher = running.server.batcher
        real, go, steps = batcher.slots.step, threading.Semaphore(2), []

        def slow(taken: list[int]) -> Any:
            go.acquire()
            steps.append(list(taken))
            return real(taken)

        monkeypatch.setattr(batcher.slots, "step", slow)
        body = json.dumps({"prompt": "a", "max_tokens": 16, "temperature": 0, "stream": stream})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        client = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
        client.sendall((head + body).encode())
        wait(lambda: len(steps) == 2)
        assert batcher.active == 1
        client.close()
        wait(lambda: "lm_disconnects_total 1.0" in httpx.get(running.url + "/metrics").text)
        go.release()  # the step that was in progress
        wait(lambda: batcher.active == 0)
        assert len(steps) <= 3
    finally:
        for _ in range(50):
            go.release()
        running.stop()


def test_a_full_queue_is_429_and_a_late_text_504(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(make_app(LM, "toy", Limits(slots=1, length=32, max_tokens=16, max_queue=1, max_seconds=0.5)))
    go = threading.Event()
    try:
        batcher = running.server.batcher
        real = batcher.slots.step
        monkeypatch.setattr(batcher.slots, "step", lambda taken: (go.wait(30), real(taken))[1])
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            held = [clients.submit(running.post, "/v1/completions", {"prompt": "a"})]
            wait(lambda: batcher.active == 1)
            held.append(clients.submit(running.post, "/v1/completions", {"prompt": "b"}))
            wait(lambda: batcher.waiting == 1)
            refused = running.post("/v1/completions", {"prompt": "c"})
            assert refused.status_code == 429 and refused.headers["retry-after"]
            time.sleep(0.6)
            go.set()
            assert [answer.result().status_code for answer in held] == [504, 504]
    finally:
        go.set()
        running.stop()


MISTAKES: dict[str, tuple[str, Any, int, str]] = {
    "no object": ("completions", [1], 400, "JSON object"),
    "unknown field": ("completions", {"prompt": "a", "max_token": 3}, 400, "Did you mean 'max_tokens'"),
    "no prompt": ("completions", {}, 400, "'prompt' is missing"),
    "type": ("completions", {"prompt": "a", "max_tokens": "3"}, 400, "must be int"),
    "boolean": ("completions", {"prompt": "a", "n": True}, 400, "must be int"),
    "too many tokens": ("completions", {"prompt": "a", "max_tokens": 17}, 400, "at most 16"),
    "too long": ("completions", {"prompt": "a" * 30, "max_tokens": 9}, 400, "30 tokens"),
    "none": ("completions", {"prompt": "a", "max_tokens": 0}, 400, "nothing would be generated"),
    "temperature": ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature is -1"),
    "top_p": ("completions", {"prompt": "a", "top_p": 1.5}, 400, "must be from 0 to 1"),
    "n": ("completions", {"prompt": "a", "n": 99}, 400, "prompts times n"),
    "empty": ("completions", {"prompt": ""}, 200, ""),
    "ids": ("completions", {"prompt": [1, 999]}, 400, "ids from 0 to 256"),
    "stop": ("completions", {"prompt": "a", "stop": [""]}, 400, "stop must be"),
    "another model": ("completions", {"prompt": "a", "model": "gpt"}, 404, "'toy'"),
    "body": ("completions", {"prompt": "a" * 3000}, 413, "2,000 bytes"),
    "messages": ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages must be"),
    "input": ("embeddings", {"input": []}, 400, "input must be a text"),
    "input ids": ("embeddings", {"input": [1, 999]}, 400, "outside of 0 to 256"),
    "mixed input": ("embeddings", {"input": ["a", [1]]}, 400, "both texts and token ids"),
    "top_k of none": ("completions", {"prompt": "a", "max_tokens": 2, "top_k": -1}, 200, ""),
    "top_k": ("completions", {"prompt": "a", "top_k": -2}, 400, "top_k=-2"),
    "task": ("predict", {"task": "fill-mask", "inputs": "a"}, 400, "no task 'fill-mask'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_errors_have_a_reason(running: Running, case: str) -> None:
    path, body, status, reason = MISTAKES[case]
    answer = running.post(f"/v1/{path}", body)
    assert answer.status_code == status, answer.text
    assert status == 200 or reason in answer.json()["error"]["message"]


def test_what_is_not_a_request(running: Running) -> None:
    url = running.url + "/v1/completions"
    json_type = {"content-type": "application/json"}
    assert httpx.post(url, content=b"{", headers=json_type).status_code == 400
    assert httpx.post(url, content=b'{"prompt": "a", "top_p": NaN}', headers=json_type).status_code == 400
    assert httpx.post(url, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}).status_code == 415
    half = b'"a\xed\xa0\x80b"'  # half of a surrogate pair, as if it were a character
    for path, body in (
        ("completions", b'{"prompt": %b, "max_tokens": 2}'),
        ("completions", b'{"prompt": %b, "max_tokens": 2, "stream": true}'),
        ("embeddings", b'{"input": %b}'),
    ):
        answer = httpx.post(f"{running.url}/v1/{path}", content=body % half, headers=json_type)
        assert answer.status_code == 400 and "not valid JSON" in answer.text
    marked = httpx.post(url, content=b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 2}', headers=json_type)
    assert marked.status_code == 200  # a byte order mark
    assert httpx.get(url).status_code == 405
    assert httpx.get(running.url + "/v2").status_code == 404


def test_a_token_is_required() -> None:
    running = Running(make_app(LM, "toy", LIMITS, token="secret"))
    try:

        def ask(**headers):
            return running.post("/v1/completions", {"prompt": "a"}, headers=headers).status_code

        assert [ask(), ask(authorization="Bearer wrong"), ask(authorization="Bearer secret")] == [401, 401, 200]
        assert httpx.get(running.url + "/metrics").status_code == 401
        assert httpx.get(running.url + "/healthz").json() == {"status": "ok"}
    finally:
        running.stop()


def test_a_token_may_have_any_characters() -> None:
    running = Running(make_app(LM, "toy", LIMITS, token="pässword"))
    try:
        for code, status in (("utf-8", 200), ("latin-1", 200), ("utf-16", 401)):
            header = b"Bearer " + "pässword".encode(code).replace(b"\0", b"")
            assert httpx.get(running.url + "/v1/models", headers={b"authorization": header}).status_code == status
    finally:
        running.stop()


def test_addresses_do_not_become_labels() -> None:
    """Clients cannot make the server store what they write, least of all without its token."""
    running = Running(make_app(LM, "toy", LIMITS, token="secret"))
    try:
        for number in range(5):
            assert httpx.get(f"{running.url}/v1/models/x{number}").status_code == 401
            assert httpx.get(f"{running.url}/x{number}").status_code == 404
        said = httpx.get(running.url + "/metrics", headers={"authorization": "Bearer secret"}).text
    finally:
        running.stop()
    labels = [line for line in said.splitlines() if line.startswith("lm_requests_total{")]
    assert labels == ['lm_requests_total{path="/v1/models/{name:path}",status="401"} 5.0']


def test_without_max_tokens_there_are_as_many_as_fit() -> None:
    """16, unless the server gives less or the prompt leaves less space; each prompt separately where rows are batched."""
    small = Running(make_app(LM, "toy", Limits(slots=2, length=24, max_tokens=12)))
    try:
        body = {"prompt": ["abc", "a" * 20], "temperature": 0}
        answer = small.post("/v1/completions", body).json()
        assert [choice["text"] for choice in answer["choices"]] == [
            LM.tokenizer.decode(LM.generate([list(text.encode())], max_new_tokens=most)[0, len(text) :])
            for text, most in zip(body["prompt"], (12, 24 - 20), strict=True)
        ]
        assert answer["usage"]["completion_tokens"] == 12 + 4
        beams = small.post("/v1/completions", body | {"num_beams": 2}).json()
        assert beams["usage"]["completion_tokens"] == 2 * 4  # one run of `generate`
        full = small.post("/v1/completions", {"prompt": "a" * 24})
        assert full.status_code == 400 and "24 tokens" in full.text
        assert small.post("/v1/completions", {"prompt": "a" * 20, "max_tokens": 5}).status_code == 400
    finally:
        small.stop()


def test_the_page_needs_no_network(running: Running) -> None:
    page = httpx.get(running.url + "/")
    assert page.status_code == 200 and "<title>lm_research" in page.text
    assert "://" not in page.text and "src=" not in page.text
    (model,) = httpx.get(running.url + "/v1/models").json()["data"]
    assert (model["id"], model["writes"]) == ("toy", True)
    seen = running.post("/v1/inspect", {"text": "abcd"}).json()
    layer = np.array(seen["attentions"])[0]
    assert seen["tokens"] == list("abcd") and layer.shape[-2:] == (4, 4)
    assert layer.sum(-1) == pytest.approx(1.0, abs=1e-3) and np.triu(layer, 1).max() == 0.0
    assert 'lm_requests_total{path="/v1/inspect",status="200"} 1.0' in httpx.get(running.url + "/metrics").text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--host=0.0.0.0"], "accepts remote connections"),
        (["--token_env=NO_SUCH_TOKEN"], "has no token"),
        (["--token_file=/nowhere/token"], "cannot be read"),
        (["--slots=0"], "from 1 to 4096"),
        (["--port=70000"], "from 0 to 65535"),
    ],
)
def test_errors_of_the_command_end_with_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["--model=/nowhere", *argv]) == 2
    assert message in capsys.readouterr().err
