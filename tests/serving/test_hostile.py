"""Clients that request too much, do not wait, or never end: they get an error in time, and others are not affected."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from serving_clients import Running, events, wait

from helpers import toys
from lm_research import serve
from lm_research.decoding.generation_request import engine_of
from lm_research.errors import UserError
from lm_research.serving import memory, schemas
from lm_research.serving.access import Access, page_policy
from lm_research.serving.app import PAGE, Limits, make_app
from lm_research.serving.responses import error_body
from lm_research.serving.slots import Slots

TEMPLATE = b'{"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}'


class ChatTokenizer(toys.ByteTokenizer):
    files = {"tokenizer_config.json": TEMPLATE}


LM = toys.language_model(vocab=257, scale=0.3, tokenizer=ChatTokenizer())
LIMITS = Limits(slots=2, length=32, max_tokens=16, max_queue=64, max_body_bytes=300_000)
ASKED = {
    "completions": {"prompt": "ab", "max_tokens": 3, "temperature": 0},
    "chat/completions": {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3, "temperature": 0},
    "embeddings": {"input": "ab"},
    "predict": {"task": "zero-shot-classification", "inputs": "ab"},
    "inspect": {"text": "ab"},
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running(make_app(LM, "toy", LIMITS))
    found.server._pipelines["zero-shot-classification"] = lambda inputs, **options: inputs
    yield found
    found.stop()


def head(length: int, path: str = "/v1/completions") -> bytes:
    lines = f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"
    return "\r\n".join([*lines, "", ""]).encode()


def until_closed(client: socket.socket) -> bytes:
    found = b""
    while piece := client.recv(65536):
        found += piece
    client.close()
    return found


# ------------------------------------------------------------------------------------------- requests

TOO_MUCH: list[tuple[str, str, Any]] = [
    ("completions", "bad_words_ids", [[1]] * 1025),
    ("completions", "bad_words_ids", [[1] * 65]),
    ("completions", "bad_words_ids", [[1] * 50] * 82),
    ("completions", "bad_words_ids", [[1], []]),
    ("completions", "force_words_ids", [[1]] * 17),
    ("completions", "force_words_ids", [[1] * 17]),
    ("completions", "force_words_ids", [[1] * 13] * 5),
    ("completions", "stop", ["a"] * 5),
    ("completions", "stop", "a" * 201),
    ("completions", "logit_bias", {str(token): 1 for token in range(301)}),
    ("completions", "n", 17),
    ("completions", "n", 10**400),
    ("completions", "num_beams", 10**9),
    ("completions", "prompt", ["a"] * 17),
    ("completions", "logprobs", 6),
    ("completions", "max_tokens", 10**30),
    ("completions", "max_tokens", -1),
    ("completions", "seed", 10**300),
    ("completions", "src_lang", "x" * 201),
    ("completions", "repetition_penalty", 10**400),
    ("chat/completions", "top_logprobs", 21),
    ("chat/completions", "messages", [{"role": "user", "content": "a"}] * 1025),
    ("chat/completions", "messages", [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}]),
    ("chat/completions", "tools", [{"type": "function"}]),
    ("chat/completions", "response_format", {"type": "json_object"}),
    ("chat/completions", "response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
    ("completions", "guided_json", {"type": "object"}),
    ("completions", "stop_token_ids", [1]),
    ("embeddings", "input", ["a"] * 257),
    ("embeddings", "dimensions", 2),
    ("predict", "inputs", ["a"] * 257),
    ("predict", "options", {"nope": 1}),
    ("completions", "prompt", "a" * 40),
    ("completions", "bad_words_ids", [[1], [999]]),
    ("completions", "force_words_ids", [[10**400]]),
    ("completions", "logit_bias", {"257": 1}),
    ("completions", "tgt_lang", "en_XX"),
    ("chat/completions", "messages", [{"role": "user", "content": "a" * 40}]),
    ("chat/completions", "moderation", {"input": True}),
    ("chat/completions", "bad_words", ["a"]),
    ("embeddings", "prompt_name", "nope"),
]


@pytest.mark.parametrize(("path", "field", "value"), TOO_MUCH, ids=[f"{n}-{one[1]}" for n, one in enumerate(TOO_MUCH)])
def test_too_much_is_refused_by_the_fields_name(running: Running, path: str, field: str, value: Any) -> None:
    answer = running.post(f"/v1/{path}", ASKED[path] | {field: value})
    said = answer.json()["error"]
    assert answer.status_code == 400 and said["type"] == "invalid_request_error", answer.text
    assert field in said["message"] and said["param"] == field and len(said["message"]) < 1100


def test_missing_and_unknown_fields_are_named() -> None:
    for body, field in (({}, "prompt"), ({"prompt": "a", "promt": "b"}, "promt")):
        with pytest.raises(UserError) as mistake:
            schemas.completion(body)
        assert error_body(400, str(mistake.value), set(body))["param"] == field


# From OpenAI's API reference, version 2.3.0, and fields that vLLM's and other clients add without effect.
HARMLESS = {
    "user": "me",
    "metadata": {"run": "1"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "reasoning_effort": "low",
    "verbosity": "low",
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "implicit"},
}
NULLS = dict.fromkeys(
    (
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
        "best_of",
        "echo",
        "suffix",
        "dimensions",
        "encoding_format",
    )
)
IDLE = {
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "bad_words": [],
    "media_io_kwargs": {},
    "ignore_eos": False,
    "skip_special_tokens": True,
    "add_generation_prompt": True,
    "chat_template_kwargs": {},
}


@pytest.mark.parametrize("path", ASKED)
def test_fields_without_effect_change_nothing(running: Running, path: str) -> None:
    plain = running.post(f"/v1/{path}", ASKED[path]).json()
    for more in (HARMLESS, IDLE):
        answer = running.post(f"/v1/{path}", more | ASKED[path])
        assert answer.status_code == 200, answer.text
        for name in ("choices", "data", "outputs", "attentions"):
            assert answer.json().get(name) == plain.get(name)
    nulls = {name: None for name in NULLS if name not in ASKED[path]}
    assert running.post(f"/v1/{path}", nulls | ASKED[path]).status_code == 200


def test_a_missing_language_is_an_error_of_the_request(running: Running) -> None:
    for code in ("", "xx"):
        answer = running.post("/v1/completions", ASKED["completions"] | {"src_lang": code})
        assert answer.status_code == 400, answer.text


def test_all_tokens_but_one_are_banned(running: Running) -> None:
    """Of 257 tokens 256 are banned, so only the other one is generated; 800 more words make no difference."""
    words = [[token] for token in range(257) if token != ord("x")] + [[1, 2, token % 257] for token in range(700)]
    body = {"prompt": "ab", "max_tokens": 5, "min_tokens": 5, "temperature": 0, "bad_words_ids": words}
    assert running.post("/v1/completions", body).json()["choices"][0]["text"] == "xxxxx"


BODIES = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"prompt": ' + b"[" * 150 + b"]" * 150 + b"}",
    b"",
    b"\xff\xfe",
    b"nul",
    b'{"x": 1e400}',
    b'{"x": NaN}',
    b'{"x": [{"y": -Infinity}]}',
    b'{"x": ' + b"9" * 5000 + b"}",
    b'{"x": "\\udcff"}',
    b'{"\\ud800": 1}',
    b'{"x": 1, "x": 2}',
    b'{"x": {"y": 1, "y": 1}}',
]


@pytest.mark.parametrize("path", ASKED)
def test_what_is_not_json_is_refused_everywhere(running: Running, path: str) -> None:
    with httpx.Client() as client:
        for body in BODIES:
            answer = client.post(f"{running.url}/v1/{path}", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400 and "is not valid JSON" in answer.json()["error"]["message"], body[:40]
        for value in (b"null", b"[]", b'"x"', b"5", b"{}", b'{"prompt":1,"messages":1,"input":1,"task":1,"text":1}'):
            answer = client.post(
                f"{running.url}/v1/{path}", content=value, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", value


def test_options_of_tasks_are_bounded(running: Running) -> None:
    for options in ({"candidate_labels": ["a"] * 300}, {"candidate_labels": "a," * 300}, {"batch_size": 10**9}):
        assert running.post("/v1/predict", ASKED["predict"] | {"options": options}).status_code == 400, options


def test_a_body_that_is_too_large_is_not_read(running: Running) -> None:
    answer = until_closed(running.dial(head(10**12)))
    assert answer.startswith(b"HTTP/1.1 413") and b"300,000 bytes" in answer


# ------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("way", ["slots", "stream", "beams", "embeddings", "predict"])
def test_the_deadline_holds_while_a_program_is_compiled(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is blocked for as long as the test requires, as a compiler would block it."""
    limits = Limits(slots=1, length=32, max_tokens=16, max_seconds=0.5)
    running, go = Running(make_app(LM, "toy", limits)), threading.Event()
    server = running.server
    monkeypatch.setattr(server.batcher.slots, "step", lambda taken: go.wait(60))
    monkeypatch.setattr("lm_research.serving.sequential_worker.in_pieces", lambda *given, **named: iter([go.wait(60)]))
    monkeypatch.setattr(server.lm, "embed", lambda *given, **named: go.wait(60))
    monkeypatch.setitem(server._pipelines, "zero-shot-classification", lambda *given, **named: go.wait(60))
    path = way if way in ASKED else "completions"
    body = ASKED[path] | {"stream": {"stream": True}, "beams": {"num_beams": 2}}.get(way, {})
    try:
        if way == "stream":
            with httpx.stream("POST", running.url + "/v1/completions", json=body, timeout=60) as response:
                (said,) = events(response)
        else:
            answer = running.post(f"/v1/{path}", body)
            said = answer.json()
            assert answer.status_code == 504
        assert said["error"]["code"] == "504" and not go.is_set()
        assert httpx.get(running.url + "/healthz").status_code == 200
    finally:
        go.set()
        running.stop()


def test_a_server_ends_in_time_whatever_is_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model never continues: waiting clients get an error, and stalled ones are cut off."""
    limits = Limits(slots=1, length=32, max_tokens=16)
    running, go = Running(make_app(LM, "toy", limits), drain_seconds=1.0), threading.Event()
    monkeypatch.setattr(running.server.batcher.slots, "step", lambda taken: go.wait(60))
    monkeypatch.setattr("lm_research.serving.sequential_worker.in_pieces", lambda *given, **named: iter([go.wait(60)]))
    slow = running.dial(b"POST /v1/compl")
    bodies = [ASKED["completions"], ASKED["completions"] | {"num_beams": 2}]
    try:
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            waiting = [clients.submit(running.post, "/v1/completions", body) for body in bodies]
            wait(lambda: running.server.batcher.active == 1 and running.server.sequential.active == 1)
            start = time.monotonic()
            assert running.stop() and time.monotonic() - start < 10
            assert [answer.result().status_code for answer in waiting] == [503, 503]
        assert until_closed(slow) == b""
    finally:
        go.set()


def test_an_idle_server_ends_without_cutting_off_anyone() -> None:
    running = Running(make_app(LM, "toy", Limits(slots=1, length=32)))
    httpx.get(running.url + "/healthz")
    assert not running.stop()


def test_reading_a_long_text_does_not_hold_up_others(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun, real = threading.Event(), threading.Event(), LM.tokenizer.encode

    def slow(text: str) -> list[int]:
        if text.startswith("slow"):
            begun.set()
            go.wait(60)
        return real(text)

    monkeypatch.setattr(LM.tokenizer, "encode", slow)
    with concurrent.futures.ThreadPoolExecutor(1) as clients:
        held = clients.submit(running.post, "/v1/completions", ASKED["completions"] | {"prompt": "slow"})
        assert begun.wait(30)
        assert httpx.get(running.url + "/healthz").status_code == 200
        assert running.post("/v1/completions", ASKED["completions"]).status_code == 200
        go.set()
        assert held.result().status_code == 200


def test_only_the_beginning_of_a_far_too_long_text_is_read(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], LM.tokenizer.encode
    monkeypatch.setattr(LM.tokenizer, "encode", lambda text: read.append(len(text)) or real(text))
    for path, field in (("completions", "prompt"), ("chat/completions", "messages")):
        text = "a" * 200_000
        value = text if field == "prompt" else [{"role": "user", "content": text}]
        answer = running.post(f"/v1/{path}", ASKED[path] | {field: value})
        assert answer.status_code == 400 and "200000 characters" in answer.text
    assert max(read) == 16 * 32


# ----------------------------------------------------------------------------------------------------- memory


def test_slots_without_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes counted for keys and values are those that the slots then hold."""
    slots, arch = Slots(engine_of(LM), 2, 32, {}), LM.definition.arch
    held = sum(x.nbytes for x in jax.tree.leaves(tuple(slots.pool[:2])))
    assert memory.cache_bytes(arch, 2, 32) == held
    monkeypatch.setattr("lm_research.serving.slots.free_bytes", lambda: held)  # the longest prompt needs more
    with pytest.raises(UserError, match="--slots=2 --length=32: .* Lower --slots or --length"):
        make_app(LM, "toy", LIMITS)


@pytest.mark.parametrize(
    ("path", "more", "field"),
    [
        ("completions", {"num_beams": 2}, "prompt"),
        ("chat/completions", {"num_beams": 2}, "messages"),
        ("embeddings", {}, "input"),
    ],
)
def test_texts_without_memory_are_refused(
    running: Running, monkeypatch: pytest.MonkeyPatch, path: str, more: dict[str, Any], field: str
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 100)
    answer = running.post(f"/v1/{path}", ASKED[path] | more)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field and "memory" in answer.text


def test_long_texts_are_cut_where_the_tokenizer_does_not(running: Running) -> None:
    """The model has 32 positions, and this tokenizer, a token for each byte, cuts nothing."""
    answers = [running.post("/v1/embeddings", {"input": ["a" * length, "b"]}) for length in (40, 32)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["data"] == answers[1].json()["data"]
    assert running.post("/v1/inspect", {"text": "a" * 100}).status_code == 200


def test_texts_to_embed_are_read_in_passes_that_fit_in_memory(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of six tokens, in float32 and twice, are 8 * 36 bytes a head: two texts fit into a pass that has memory for two."""
    texts = ["abcdef", "ab", "fedcba", "c"]
    whole = running.post("/v1/embeddings", {"input": texts}).json()
    sizes, real = [], LM.embed
    monkeypatch.setattr(memory, "MAX_SCORE_BYTES", 2 * 8 * 36 * LM.definition.arch.num_heads)
    monkeypatch.setattr(
        running.server.lm, "embed", lambda some, **named: sizes.append(len(some)) or real(some, **named)
    )
    parts = running.post("/v1/embeddings", {"input": texts}).json()
    assert sizes == [2, 2] and parts["usage"] == whole["usage"]
    for one, other in zip(parts["data"], whole["data"], strict=True):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-6)


# ------------------------------------------------------------------------------------------------- connections


def test_clients_that_leave_are_not_an_error(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(ASKED["completions"] | {"max_tokens": 16}).encode()
    beams = json.dumps(ASKED["completions"] | {"max_tokens": 16, "num_beams": 2}).encode()
    sent = [
        head(1000) + b'{"prompt": "a',
        head(len(body)) + body,
        head(len(beams)) + beams,
        head(1000, "/v1/embeddings"),
        b"GET / HT",
        b"\0\1\2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nZZ\r\n",
    ]
    with caplog.at_level(logging.ERROR):
        for one in sent * 2:
            running.dial(one).close()
        wait(lambda: running.server.batcher.active == 0 and running.server.sequential.active == 0)
        assert running.post("/v1/completions", ASKED["completions"]).status_code == 200
    assert caplog.records == []


def test_slow_heads_and_bodies_are_cut_off() -> None:
    running = Running(make_app(LM, "toy", Limits(slots=1, length=32, read_seconds=0.3)), read_seconds=0.3)
    try:
        assert until_closed(running.dial(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ")).startswith(b"HTTP/1.1 408")
        answer = until_closed(running.dial(head(1000) + b'{"prompt"'))
        assert answer.startswith(b"HTTP/1.1 408") and b'"code":"408"' in answer
        assert until_closed(running.dial(b"")) == b""
        chatty = running.dial(head(10**12) + b"a")  # continues to send what nobody reads
        with pytest.raises(OSError):
            for _ in range(400):
                chatty.sendall(b"a")
                time.sleep(0.02)
        chatty.close()
    finally:
        running.stop()


def test_idle_connections_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalled requests are closed; those waiting for an answer are not."""
    running, go = Running(make_app(LM, "toy", Limits(slots=1, length=32)), most=4), threading.Event()
    monkeypatch.setattr(running.server.batcher.slots, "step", lambda taken: go.wait(60))
    body = json.dumps(ASKED["completions"]).encode()
    try:
        held = [running.dial(sent) for sent in (b"GET / HT", b"", head(1000) + b"{") for _ in range(6)]
        assert httpx.get(running.url + "/healthz").status_code == 200
        busy = [running.dial(head(len(body)) + body) for _ in range(4)]
        wait(lambda: len(running.server._active) == 4)
        answer = httpx.get(running.url + "/healthz")
        assert answer.status_code == 503 and answer.headers["retry-after"] and answer.json()["error"]["code"] == "503"
        for one in (*held, *busy):
            one.close()
        wait(lambda: not running._uvicorn.server_state.connections)
        assert httpx.get(running.url + "/healthz").status_code == 200
    finally:
        go.set()
        running.stop()


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "localhost:8000"}, True),
        ({"host": "127.0.0.1"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "LOCALHOST."}, True),
        ({}, True),
        ({"host": "models.example:80"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "localhost.evil.example"}, False),
        ({"host": "127.0.0.1.evil.example:8000"}, False),
        ({"host": "evil.example@localhost:x["}, False),
        ({"host": "evil.example@localhost"}, False),
        ({"host": "localhost/a"}, False),
        ({"host": ""}, False),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "localhost:8000", "origin": "https://models.example"}, True),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, False),
        ({"host": "localhost:8000", "origin": "http://localhost:3000"}, False),
        ({"host": "localhost:8000", "origin": "HTTP://LOCALHOST:8000"}, True),
        ({"host": "localhost:8000", "origin": "http://127.0.0.1:3000"}, False),
        ({"host": "localhost:8000", "origin": "http://[::1]:3000"}, False),
        ({"host": "localhost:8000", "origin": "null"}, False),
        ({"host": "localhost:8000", "origin": "file://"}, False),
    ],
)
def test_host_names_that_are_accepted(headers: dict[str, str], allowed: bool) -> None:
    access = Access(None, ["127.0.0.1", "models.example", "["])
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    from starlette.datastructures import Headers

    assert (access.refusal(Headers(raw=raw)) is None) == allowed
    assert Access(None, None).refusal(Headers(raw=raw)) is None
    assert Access(None, ["*"]).refusal(Headers(raw=raw)) is None


def test_headers_restrict_what_the_page_may_do() -> None:
    running = Running(make_app(LM, "toy", LIMITS, hosts=[]))
    try:
        page = httpx.get(running.url + "/")
        script = PAGE.read_text().partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = page.headers["content-security-policy"]
        assert f"script-src 'sha256-{digest}';" in policy and "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy and "unsafe" not in policy and policy == page_policy(page.text)
        refused = httpx.get(running.url + "/v1/models", headers={"host": "evil.example"})
        assert refused.status_code == 403 and "--allowed_hosts" in refused.json()["error"]["message"]
        for answer in (page, refused, httpx.get(running.url + "/nowhere")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors" in answer.headers["content-security-policy"]
        none = until_closed(running.dial(b"\0\r\n\r\n"))  # not a request, so no application answers
        assert none.startswith(b"HTTP/1.1 400") and b"nosniff" in none and b"default-src 'none'" in none
    finally:
        running.stop()


@pytest.mark.parametrize(
    "flag",
    [
        "max_seconds=nan",
        "max_seconds=inf",
        "max_seconds=1e400",
        "max_seconds=0",
        "drain_seconds=nan",
        "read_seconds=-inf",
        "slots=1000000000",
        "length=99999999999",
        "max_body_bytes=0",
        "max_connections=0",
        "host=999.0.0.1",
        "host=a\0b",
    ],
)
def test_invalid_flags_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    token = ["--token_file", __file__] if flag.startswith("host") else []
    assert serve.main(["--model=/nowhere", f"--{flag}", *token]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(("error: --host=", f"error: Argument --{flag.partition('=')[0]}: ")) and said.count("\n") == 1
    )


def test_a_port_in_use_is_reported_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main(["--model=/nowhere", f"--port={taken.getsockname()[1]}"]) == 2
    assert "cannot listen at this address" in capsys.readouterr().err
