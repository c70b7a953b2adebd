"""Parts of the server without a model: bodies, responses, errors, threads and counters, by the documents that define their format."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from helpers.toys import ByteTokenizer
from lm_research.serving import bodies
from lm_research.serving.access import name_of, page_policy
from lm_research.serving.batcher import Event
from lm_research.serving.metrics import Metrics
from lm_research.serving.responses import Response, error_body, usage
from lm_research.serving.worker_pool import WorkerPool


class Request:
    def __init__(self, chunks: Iterable[bytes], seconds: float = 0.0, **headers: str) -> None:
        self.headers = {"content-type": "application/json"} | {name.replace("_", "-"): x for name, x in headers.items()}
        self.chunks, self.seconds = chunks, seconds

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await asyncio.sleep(self.seconds)
            yield chunk


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request([b"123", b"45"]), 200),
        (Request([b"12345"], content_type="Application/JSON ; charset=utf-8"), 200),
        (Request([b"12345"], content_length="00005"), 200),
        (Request([b"12345"], content_length="a"), 200),  # what arrives is counted in any case
        (Request([b"123", b"456"]), 413),
        (Request([], content_length="6"), 413),
        (Request([], content_length="1" * 5000), 413),
        (Request([], content_length="1000000000000000000"), 413),
        (Request([b"1"], content_type="text/json"), 415),
        (Request([b"1"], content_type=""), 415),
        (Request([b"1"], seconds=60.0), 408),
    ],
)
def test_bodies_of_at_most_five_bytes(request_: Request, status: int) -> None:
    if status == 200:
        assert asyncio.run(bodies.receive(request_, 5, 60.0)) == b"12345"
        return
    with pytest.raises(HTTPException) as caught:
        asyncio.run(bodies.receive(request_, 5, 0.05 if status == 408 else 60.0))
    assert caught.value.status_code == status
    assert (caught.value.headers or {}).get("Connection") == (None if status == 415 else "close")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'\xef\xbb\xbf{"a": [1.5, null]}', None),  # RFC 8259, section 8.1: a byte order mark may be ignored
        (b'{"a": 1, "a": 2}', "the name 'a' occurs twice"),
        (b'{"a": [{"b": NaN}]}', "a number that is not finite"),
        (b"[1e999]", "a number that is not finite"),
        (b'["\\ud800"]', "an unpaired surrogate"),
        (b"\xff", "utf-8"),
        (b"", "not valid JSON"),
    ],
)
def test_bodies_are_json(data: bytes, reason: str | None) -> None:
    if reason is None:
        assert bodies.parse(data) == {"a": [1.5, None]}
        return
    with pytest.raises(HTTPException, match=reason) as caught:
        bodies.parse(data)
    assert caught.value.status_code == 400


@pytest.mark.parametrize(
    ("status", "message", "kind", "param"),
    [
        (499, "top_p is 2, but n is 1.", "invalid_request_error", "top_p"),
        (500, "It failed.", "server_error", None),
        (400, "The field 'model' is missing, as is n.", "invalid_request_error", "model"),
        (400, "The fields top_p_n.", "invalid_request_error", None),
    ],
)
def test_errors_have_openais_form(status: int, message: str, kind: str, param: str | None) -> None:
    expected = {"message": message, "type": kind, "param": param, "code": str(status)}
    assert error_body(status, message, ("n", "top_p")) == expected


def test_long_messages_are_cut() -> None:
    assert error_body(400, "x" * 1000)["message"] == "x" * 1000
    assert error_body(400, "x" * 1001)["message"] == "x" * 1000 + " ..."
    assert usage(3, 4) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


EVENTS = [
    Event("é", 0, 0xC3, -0.5, [(0xC3, -0.5), (0x41, -1.0), (0x42, -2.0)]),
    Event("", 1, 0x42, -2.0, [(0x41, -1.0), (0x41, -1.5)]),
    Event("", 1, None, None, [], "stop"),
]


def test_completions() -> None:
    """Each token has its alternatives and itself, by their texts; texts of equal look are one entry, of the first."""
    response = Response("toy", ByteTokenizer(), chat=False, top_logprobs=2)
    found = response.whole([("éB", EVENTS), ("A", EVENTS[2:])], usage(1, 2))
    assert found["id"].startswith("cmpl-") and found["object"] == "text_completion" and found["model"] == "toy"
    first, second = found["choices"]
    assert (first["index"], first["text"], first["finish_reason"]) == (0, "éB", "stop")
    assert first["logprobs"] == {
        "tokens": ["\ufffd", "B"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"\ufffd": -0.5, "A": -1.0}, {"A": -1.0, "B": -2.0}],
        "text_offset": [0, 1],
    }
    assert second["index"] == 1 and second["logprobs"]["tokens"] == []
    plain = Response("toy", ByteTokenizer(), chat=False, top_logprobs=-1)
    assert plain.whole([("A", EVENTS)], {})["choices"][0]["logprobs"] is None
    none = Response("toy", ByteTokenizer(), chat=False, top_logprobs=0)
    assert none.chunk(1, EVENTS[1], True)["choices"] == [
        {
            "index": 1,
            "text": "",
            "logprobs": {"tokens": ["B"], "token_logprobs": [-2.0], "top_logprobs": [{"B": -2.0}], "text_offset": [1]},
            "finish_reason": None,
        }
    ]


def test_chat_completions() -> None:
    response = Response("toy", ByteTokenizer(), chat=True, top_logprobs=1)
    found = response.whole([("éB", EVENTS)], {})
    assert found["id"].startswith("chatcmpl-") and found["object"] == "chat.completion"
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "éB", "refusal": None}

    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    first, second = choice["logprobs"]["content"]
    assert first == entry("\ufffd", -0.5) | {"top_logprobs": [entry("\ufffd", -0.5)]}
    assert second == entry("B", -2.0) | {"top_logprobs": [entry("A", -1.0)]}
    chunks = [response.chunk(0, event, first) for event, first in ((EVENTS[0], True), (EVENTS[2], False))]
    assert [chunk["object"] for chunk in chunks] == ["chat.completion.chunk"] * 2
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "é"},
        {"content": ""},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    last = response.last_chunk(usage(1, 2))
    assert (last["choices"], last["usage"]["total_tokens"], last["id"]) == ([], 3, found["id"])


def test_a_pool_of_one_thread_and_one_waiting_function() -> None:
    pool, gate, began = WorkerPool("test", threads=1, max_queue=1), threading.Event(), threading.Event()

    def wait() -> str:
        began.set()
        gate.wait(60)
        pool.check_wanted()
        return "done"

    async def main() -> None:
        running = asyncio.create_task(pool.run(wait))
        waiting = asyncio.create_task(pool.run(lambda: 2))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as caught:
            await pool.run(lambda: 3)
        assert caught.value.status_code == 429 and caught.value.headers == {"Retry-After": "1"}
        gate.set()
        assert (await running, await waiting, await pool.run(lambda: 4)) == ("done", 2, 4)
        with pytest.raises(ValueError, match="wrong"):
            await pool.run(lambda: (_ for _ in ()).throw(ValueError("wrong")))
        with pytest.raises(RuntimeError, match="A library failed: odd"):
            await pool.run(lambda: (_ for _ in ()).throw(SystemExit("odd")))
        gate.clear(), began.clear()
        several = [asyncio.create_task(pool.run(wait)), asyncio.create_task(pool.run(lambda: 5))]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException):  # the number of places is what it was
            await pool.run(lambda: 6)
        gate.set()
        assert await asyncio.gather(*several) == ["done", 5]
        gate.clear(), began.clear()
        left = asyncio.create_task(pool.run(wait))
        await asyncio.to_thread(began.wait, 60)
        left.cancel()
        skipped: list[int] = []
        later = asyncio.create_task(pool.run(lambda: skipped.append(1)))
        await asyncio.sleep(0)
        later.cancel()
        await asyncio.sleep(0)
        assert not pool.close(0.0)  # it still runs
        gate.set()
        assert pool.close(60.0) and skipped == []  # what nobody waits for is not begun

    asyncio.run(main())


def test_a_pool_has_ended_once_all_its_threads_have() -> None:
    pool, gate = WorkerPool("test", threads=2, max_queue=0), threading.Event()
    assert [thread.name for thread in pool._threads] == ["test", "test"]

    async def main() -> None:
        task = asyncio.create_task(pool.run(lambda: gate.wait(60)))
        await asyncio.sleep(0)
        assert not pool.close(0.2)  # one of them still works
        gate.set()
        assert await task and pool.close(60.0)

    asyncio.run(main())


def test_a_function_whose_caller_left_ends() -> None:
    """With 504, as for a late text."""
    pool, gate, began, found = WorkerPool("test", 1, 1), threading.Event(), threading.Event(), list[int]()

    def work() -> None:
        began.set()
        gate.wait(60)
        try:
            pool.check_wanted()
        except HTTPException as error:
            found.append(error.status_code)

    async def main() -> None:
        task = asyncio.create_task(pool.run(work))
        await asyncio.to_thread(began.wait, 60)
        task.cancel()
        await asyncio.sleep(0.01)
        gate.set()

    asyncio.run(main())
    assert pool.close(60.0) and found == [504]


def test_counters() -> None:
    metrics = Metrics(None, None)
    with metrics.request("/v1/completions") as answered:
        answered(200)
    with pytest.raises(KeyError), metrics.request("/v1/completions"):
        raise KeyError
    with metrics.request("/other"):
        metrics.tokens.labels("prompt").inc(5)
    text = metrics.text().decode()
    for line in (
        'lm_requests_total{path="/v1/completions",status="200"} 1.0',
        'lm_requests_total{path="/v1/completions",status="500"} 1.0',
        'lm_requests_total{path="/other",status="500"} 1.0',
        'lm_request_seconds_count{path="/v1/completions"} 2.0',
        'lm_tokens_total{kind="prompt"} 5.0',
        "lm_disconnects_total 0.0",
        "lm_active 0.0",
        "lm_alone_waiting 0.0",
    ):
        assert line in text.splitlines(), line
    (seconds,) = re.findall(r'lm_request_seconds_sum{path="/other"} (.*)', text)
    assert 0 <= float(seconds) < 60


@pytest.mark.parametrize(
    ("netloc", "name"),
    [
        ("A.example", "a.example"),
        ("a.example.:80", "a.example"),
        ("a:", "a"),
        ("[::1]:80", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("a:b", ""),
        ("[a", ""),
        ("a b", ""),
    ],
)
def test_names_of_hosts(netloc: str, name: str) -> None:
    assert name_of(netloc) == name


def test_a_page_may_run_its_own_scripts_only() -> None:
    """The digest of "1" is that of `printf 1 | openssl sha256 -binary | base64`."""
    policy = page_policy("<script>1</script><style>1</style><script src=x>2</script>")
    digest = "'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
    assert f"script-src {digest}; style-src {digest};" in policy and policy.startswith("default-src 'none'; ")
