"""The routes: who may ask, how much, and what is answered.

/v1/completions /v1/chat/completions /v1/embeddings /v1/models      OpenAI's format
/v1/predict   {"task", "inputs", "options"}: reading tasks of lm_research.pipeline
/v1/inspect   {"text"}: tokens and attentions [layers][heads][to][from], for the page
/healthz /metrics /    whether it runs; Prometheus; a page to try it by hand
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import json
import pathlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lm_research.data.chat_template import chat_template
from lm_research.decoding.embed import prompted
from lm_research.errors import UserError
from lm_research.interop.sentence_transformers import Embedding
from lm_research.pipelines import PIPELINES, pipeline
from lm_research.pipelines.writing import TextGeneration, TextToText
from lm_research.serving import messages
from lm_research.serving.alone import Alone
from lm_research.serving.batcher import Batcher
from lm_research.serving.metrics import Metrics
from lm_research.serving.replies import problem
from lm_research.serving.writing import Writing

PAGE = pathlib.Path(__file__).with_name("page.html")
_MOST_INPUTS = 256  # texts of one request to embed or predict
_MOST_SEEN = 64  # tokens whose attentions are shown


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      slots, length, max_tokens, max_queue, max_seconds: see Batcher.
      max_body_bytes: of a request.
    """

    slots: int = 32
    length: int = 1024
    max_tokens: int = 512
    max_queue: int = 128
    max_seconds: float = 120.0
    max_body_bytes: int = 1 << 20


def make_app(lm: Any, name: str, limits: Limits = Limits(), token: str | None = None) -> Starlette:
    """The application of one model.

    Args:
      lm: the model; one that writes has slots, see Batcher.
      name: what it is called in answers.
      limits: what it takes.
      token: that requests must bear; None lets everyone in who can connect.
    """
    server = Server(lm, name, limits, token)
    guarded = {
        "/metrics": server.show_metrics,
        "/v1/models": server.models,
        "/v1/models/{name:path}": server.model,
        "/v1/embeddings": server.embeddings,
        "/v1/predict": server.predict,
        "/v1/inspect": server.inspect,
        "/v1/completions": server.completions,
        "/v1/chat/completions": server.chat,
    }
    asked = (server.show_metrics, server.models, server.model)
    routes = [Route("/", server.page), Route("/healthz", server.health)] + [
        Route(path, server.guarded(path, handler), methods=["GET" if handler in asked else "POST"])
        for path, handler in guarded.items()
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if server.batcher:
            await anyio.to_thread.run_sync(server.alone.close)
            await anyio.to_thread.run_sync(server.batcher.close)

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    app.state.server = server
    return app


def error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": problem(status, message)}, status, headers)


async def _http_error(request: Request, exception: Exception) -> Response:
    return error(exception.status_code, str(exception.detail), exception.headers)


class Server:
    """Routes of a model. `batcher` and `alone` are None where it can't write; see make_app for arguments."""

    def __init__(self, lm: Any, name: str, limits: Limits, token: str | None) -> None:
        self.lm, self.name, self.limits, self._token = lm, name, limits, token
        self.batcher, self.alone = None, None
        if lm.head in ("causal_lm", "seq2seq_lm"):
            self.batcher = Batcher(
                lm, limits.slots, limits.length, limits.max_queue, limits.max_seconds, limits.max_tokens
            )
            self.alone = Alone(lm, limits.max_queue)
        self.tasks = [
            task for task, kind in PIPELINES.items()
            if (lm.head in kind.heads or kind.heads == ("none",)) and not issubclass(kind, TextGeneration | TextToText)
        ]  # fmt: skip
        self.metrics = Metrics(self.batcher, self.alone)
        self.writing = Writing(self.batcher, self.alone, self.metrics, name, self.read) if self.batcher else None
        self._since = int(time.time())
        self._reading, self._readers = asyncio.Semaphore(1), 0
        self._pipelines: dict[str, Any] = {}

    def guarded(self, path: str, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """A handler behind the token, whose mistakes become answers, and which is counted under its route's path.

        What clients write into an address is no label: anyone could make as many as they like, and each is kept.
        """

        async def handle(request: Request) -> Response:
            with self.metrics.request(path) as record:
                response = await self._answer(handler, request)
                record(response.status_code)
                return response

        return handle

    async def _answer(self, handler: Callable[[Request], Any], request: Request) -> Response:
        if self._token is not None and not self._knows(request.headers.get("authorization", "")):
            return error(401, "Give the server's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except UserError as mistake:
            return error(400, str(mistake))
        except HTTPException as mistake:
            return error(mistake.status_code, mistake.detail, mistake.headers)

    def _knows(self, given: str) -> bool:
        """Whether a header bears the token, sent in UTF-8, as most clients do, or in Latin-1, as browsers do."""
        wanted = f"Bearer {self._token}".encode()
        in_latin_1 = hmac.compare_digest(given.encode(), wanted)
        return hmac.compare_digest(given.encode("latin-1"), wanted) or in_latin_1  # headers are read as Latin-1

    async def body(self, request: Request) -> Any:
        """The JSON of a request; raises HTTPException."""
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise HTTPException(415, "Send JSON, with content-type: application/json.")
        found, most = bytearray(), self.limits.max_body_bytes
        async for piece in request.stream():
            found += piece
            if len(found) > most:
                raise HTTPException(413, f"The body is larger than {most:,} bytes.")
        try:
            text = found.decode("utf-8-sig")  # json would let halves of surrogate pairs pass, which are no text
            value = json.loads(text, parse_constant=_refuse)
            if "\\u" in text:
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError) as problem:
            raise HTTPException(400, f"The body is no JSON: {problem}.") from problem

    def check_model(self, body: Any) -> None:
        """Raises HTTPException if another model is asked for."""
        asked = body.get("model") if isinstance(body, dict) else None
        if isinstance(asked, str) and asked != self.name:
            raise HTTPException(404, f"There is no model {asked!r} here, but {self.name!r}.")

    async def read(self, function: Callable[[], Any]) -> Any:
        """Runs the model on texts in a thread, one request at a time; others wait, up to limits."""
        if self._readers >= self.limits.max_queue:
            raise HTTPException(429, "Too many requests wait. Try again later.", {"Retry-After": "1"})
        self._readers += 1

        async def run() -> Any:
            try:
                async with self._reading:
                    return await anyio.to_thread.run_sync(function)
            finally:
                self._readers -= 1

        task = asyncio.ensure_future(run())
        try:  # what runs in a thread can't be stopped: it keeps its place until it ends
            return await asyncio.wait_for(asyncio.shield(task), self.limits.max_seconds)
        except TimeoutError as late:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise HTTPException(504, f"Not done within {self.limits.max_seconds:g} seconds.") from late

    # ----------------------------------------------------------------------------------------------------- routes

    async def page(self, request: Request) -> Response:
        return HTMLResponse(await anyio.to_thread.run_sync(PAGE.read_text))

    async def health(self, request: Request) -> Response:
        failed = self.batcher is not None and self.batcher.failed
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self.check_model({"model": request.path_params["name"]})
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        more = {"head": self.lm.head, "tasks": self.tasks, "writes": self.batcher is not None}
        more["chats"] = self.batcher is not None and chat_template(self.lm.tokenizer) is not None
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "local", **more}

    async def embeddings(self, request: Request) -> Response:
        body = await self.body(request)
        self.check_model(body)
        given = messages.check(body, messages.EMBEDDINGS, ("input",))
        form, texts = given.get("encoding_format", "float"), messages.inputs(given["input"])
        if not 1 <= len(texts) <= _MOST_INPUTS or not all(map(len, texts)):
            raise UserError(f"input must be a text or a list of 1 to {_MOST_INPUTS} texts that are not empty.")
        if form not in ("float", "base64"):
            raise UserError(f"encoding_format is {form!r}; it must be float or base64.")
        named = {name: given.get(name) for name in ("prompt_name", "prompt")}
        begins = prompted(self.lm.embedding or Embedding(), texts, **named)
        rows = (await self.read(lambda: self.lm.embed(texts, **named))).astype("<f4")
        shown = [row.tolist() if form == "float" else base64.b64encode(row.tobytes()).decode() for row in rows]
        tokens = sum(len(self.lm.tokenizer.encode(begins + text) if isinstance(text, str) else text) for text in texts)
        data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(shown)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    async def predict(self, request: Request) -> Response:
        body = await self.body(request)
        self.check_model(body)
        given = messages.check(body, messages.PREDICT, ("task", "inputs"))
        task, inputs, options = given["task"], given["inputs"], given.get("options", {})
        if task not in self.tasks:
            raise UserError(f"This model has no task {task!r} here. Its tasks: {', '.join(self.tasks) or 'none'}.")
        if isinstance(inputs, list) and not 1 <= len(inputs) <= _MOST_INPUTS:
            raise UserError(f"inputs must be one input, or a list of 1 to {_MOST_INPUTS}.")
        for one in inputs if isinstance(inputs, list) else [inputs]:
            if not isinstance(one, str | dict):
                raise UserError("Each of inputs must be a text or an object.")

        def run() -> Any:
            if task not in self._pipelines:
                self._pipelines[task] = pipeline(task, self.lm)
            try:
                return _plain(self._pipelines[task](inputs, **options))
            except (TypeError, KeyError, ValueError, AttributeError) as problem:
                raise UserError(f"The task {task} does not take these inputs and options: {problem}.") from problem

        return JSONResponse({"model": self.name, "task": task, "outputs": await self.read(run)})

    async def inspect(self, request: Request) -> Response:
        body = await self.body(request)
        self.check_model(body)
        given = messages.check(body, messages.INSPECT, ("text",))
        if self.lm.definition.arch.encoder is not None:
            raise UserError("Attentions are shown of encoders and decoders, not of pairs of them.")
        if not given["text"]:
            raise UserError("text has no tokens.")
        inputs = self.lm.inputs([given["text"]])
        seen = int(inputs["attention_mask"].sum())
        if seen > _MOST_SEEN:
            raise UserError(f"text has {seen} tokens; attentions are shown of up to {_MOST_SEEN}.")
        outputs = await self.read(lambda: self.lm(**inputs, output_attentions=True)["attentions"])
        real_L = inputs["attention_mask"][0] > 0
        shown = [np.round(np.asarray(layer)[0][:, real_L][:, :, real_L], 4).tolist() for layer in outputs]
        tokens = self.lm.tokenizer.pieces(inputs["input_ids"][0][real_L])
        return JSONResponse({"tokens": tokens, "attentions": shown})

    async def completions(self, request: Request) -> Response:
        return await self._write(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._write(request, chat=True)

    async def _write(self, request: Request, chat: bool) -> Response:
        body = await self.body(request)
        self.check_model(body)
        if self.writing is None:
            raise UserError(f"This model has the head {self.lm.head!r} and can't write. Use /v1/predict.")
        order = messages.chat(body, self.lm) if chat else messages.completion(body)
        found = await self.writing.answer(request, order, chat)
        return found if order.stream else JSONResponse(found)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON's."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
