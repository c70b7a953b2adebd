"""The routes of the server.

/v1/completions /v1/chat/completions /v1/embeddings /v1/models      OpenAI's format
/v1/predict   {"task", "inputs", "options"}: tasks of lm_research.pipeline that do not generate text
/v1/inspect   {"text"}: tokens and attentions [layers][heads][to][from], for the page
/healthz /metrics /    health; Prometheus metrics; a page to try the model
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lm_research.decoding.embed import resolve_prompt
from lm_research.errors import UserError
from lm_research.models.text_embedding import EmbeddingConfig
from lm_research.pipelines import PIPELINES, pipeline
from lm_research.pipelines.generation import TextGeneration, TextToText
from lm_research.serving import bodies, schemas
from lm_research.serving.access import Access, page_policy
from lm_research.serving.batcher import Batcher
from lm_research.serving.completions import CompletionService
from lm_research.serving.memory import max_batch_size
from lm_research.serving.metrics import Metrics
from lm_research.serving.responses import error_body
from lm_research.serving.sequential_worker import SequentialWorker
from lm_research.serving.worker_pool import WorkerPool
from lm_research.tokenizers.chat_template import chat_template

LOG = logging.getLogger("lm_research")
PAGE = pathlib.Path(__file__).with_name("page.html")
_MAX_INPUTS = 256  # texts of one request to embed or predict
_BATCH_SIZE = 32  # texts of one forward pass, as in `embed`
_MAX_INSPECTED = 64  # tokens whose attentions are returned
_NUM_CPU_THREADS = 2  # threads that parse requests, tokenize texts and serialize responses
_CLOSE_SECONDS = 0.5  # time to wait for threads at the end


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
      slots, length, max_tokens, max_queue, max_seconds: see Batcher.
      max_body_bytes: maximum size of a request's body.
      read_seconds: maximum time to receive a body.
    """

    slots: int = 32
    length: int = 1024
    max_tokens: int = 512
    max_queue: int = 128
    max_seconds: float = 120.0
    max_body_bytes: int = 1 << 20
    read_seconds: float = 30.0


def make_app(
    lm: Any, name: str, limits: Limits = Limits(), token: str | None = None, hosts: Collection[str] | None = None
) -> Starlette:
    """Build the ASGI application of one model.

    Args:
      lm: the model; slots are allocated if it generates text, see Batcher.
      name: its name in responses.
      limits: limits of requests.
      token: token that requests must carry; None accepts requests without one.
      hosts: accepted host names in addition to this machine's own; None accepts all, see access.py.
    """
    server = Server(lm, name, limits, token)
    guarded: dict[str, Callable[..., Any]] = {
        "/metrics": server.show_metrics,
        "/v1/models": server.models,
        "/v1/models/{name:path}": server.model,
        "/v1/embeddings": server.embeddings,
        "/v1/predict": server.predict,
        "/v1/inspect": server.inspect,
        "/v1/completions": server.completions,
        "/v1/chat/completions": server.chat,
    }
    get_handlers = (server.show_metrics, server.models, server.model)
    routes = [Route("/", server.page), Route("/healthz", server.health)] + [
        Route(
            path,
            server.guarded(path, handler, reads=handler not in get_handlers),
            methods=["GET" if handler in get_handlers else "POST"],
        )
        for path, handler in guarded.items()
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        server.end()
        await asyncio.get_running_loop().run_in_executor(None, server.close, _CLOSE_SECONDS)

    access = [Middleware(Access, hosts=hosts)]
    handlers = {HTTPException: _http_error}
    app = Starlette(routes=routes, middleware=access, lifespan=lifespan, exception_handlers=handlers)
    app.state.server = server
    return app


def error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None, fields: Collection[str] = ()
) -> JSONResponse:
    """Return an error in OpenAI's format; see responses.error_body for `fields`."""
    return JSONResponse({"error": error_body(status, message, fields)}, status, headers)


async def _http_error(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    return error_response(exception.status_code, str(exception.detail), exception.headers)


class Server:
    """Route handlers of a model; see make_app for arguments.

    Attributes:
      batcher: generates in slots; None if the model does not generate text.
      sequential: generates what slots cannot, such as beams; None if the model does not generate text.
    """

    def __init__(self, lm: Any, name: str, limits: Limits, token: str | None) -> None:
        self.lm, self.name, self.limits, self._token = lm, name, limits, token
        self.batcher: Batcher | None = None
        self.sequential: SequentialWorker | None = None
        self.completion_service: CompletionService | None = None
        if lm.head in ("causal_lm", "seq2seq_lm"):
            self.batcher = Batcher(
                lm, limits.slots, limits.length, limits.max_queue, limits.max_seconds, limits.max_tokens
            )
            self.sequential = SequentialWorker(lm, limits.max_queue)
        self.tasks = [
            task
            for task, kind in PIPELINES.items()
            if lm.head in kind.heads and not issubclass(kind, TextGeneration | TextToText)
        ]
        self.metrics = Metrics(self.batcher, self.sequential)
        if self.batcher and self.sequential:
            self.completion_service = CompletionService(
                self.batcher, self.sequential, self.metrics, name, self.run_model, self.run_in_thread
            )
        self._since = int(time.time())
        # One thread runs the model without generation; others do what takes CPU time, so that no other request waits.
        self._model_thread = WorkerPool("model", 1, limits.max_queue)
        self._cpu_threads = WorkerPool("cpu", _NUM_CPU_THREADS, limits.max_queue + limits.slots)
        self._active: set[asyncio.Task[Any]] = set()
        self._ending = False
        self._pipelines: dict[str, Any] = {}

    def guarded(self, path: str, handler: Callable[..., Any], reads: bool) -> Callable[[Request], Any]:
        """Wrap a handler: check the token, convert exceptions to error responses, and count the request.

        Args:
          path: the route's path, which labels the metrics; a request's own path would create unlimited labels.
          handler: called with the parsed body and the deadline, or with the request if it does not read a body.
          reads: whether the handler reads a body.
        """

        async def handle(request: Request) -> Response:
            with self.metrics.request(path) as record:
                response = await self._answer(handler, request, reads)
                record(response.status_code)
                return response

        return handle

    async def _answer(self, handler: Callable[..., Any], request: Request, reads: bool) -> Response:
        deadline, fields = time.monotonic() + self.limits.max_seconds, set[str]()
        if self._token is not None and not self._has_token(request.headers.get("authorization", "")):
            return error_response(
                401, "Send the server's token: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
            )
        try:
            if not reads:
                return await handler(request)
            data = await bodies.receive(request, self.limits.max_body_bytes, self.limits.read_seconds)

            async def work() -> Response:
                body = await self.run_in_thread(lambda: bodies.parse(data))
                fields.update(body if isinstance(body, dict) else ())
                return await handler(body, deadline)

            return await self._in_time(work(), request, deadline)
        except UserError as error:
            return error_response(400, str(error), fields=fields)
        except HTTPException as error:
            return error_response(error.status_code, error.detail, error.headers)
        except ClientDisconnect:
            self.metrics.disconnects.inc()
            return error_response(499, "The client has disconnected.")
        except Exception:
            LOG.exception("a request failed")
            return error_response(500, "The server failed to process this request. See the traceback in its log.")

    async def _in_time(self, work: Coroutine[Any, Any, Any], request: Request, deadline: float) -> Response:
        """Await `work`; cancel it at the deadline, when the client disconnects or when the server stops.

        A function that it has running in a thread continues to run there, and occupies the thread until it returns.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        self._active.add(task)
        try:
            await asyncio.wait({task, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled() or (self._ending and not task.done()):
                raise HTTPException(503, "The server is stopping. Try again later.", {"Retry-After": "5"})
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            raise HTTPException(504, f"Not done within {self.limits.max_seconds:g} seconds.")
        finally:
            self._active.discard(task)
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})  # it frees its slots first
            if not task.cancelled():
                task.exception()  # mark as retrieved: it was raised above, or the response is already decided

    def end(self) -> bool:
        """Cancel all active requests with a response; return whether there were any. Called in the event loop."""
        left = len(self._active)
        self._ending = True
        for worker in (self.batcher, self.sequential):
            left += len(worker.abandon()) if worker else 0
        for task in self._active:
            task.cancel()
        return left > 0

    def close(self, seconds: float) -> bool:
        """Stop the threads, and return whether all ended in time. One that compiles a program cannot be stopped."""
        end = time.monotonic() + seconds
        workers = (self.sequential, self.batcher, self._model_thread, self._cpu_threads)
        return all([worker.close(max(0.0, end - time.monotonic())) for worker in workers if worker])

    def _has_token(self, header: str) -> bool:
        """Return whether a header carries the token, in UTF-8 (most clients) or in Latin-1 (browsers)."""
        expected = f"Bearer {self._token}".encode()
        in_latin_1 = hmac.compare_digest(header.encode(), expected)
        return hmac.compare_digest(header.encode("latin-1"), expected) or in_latin_1  # headers are decoded as Latin-1

    def check_model(self, body: Any) -> None:
        """Raise HTTPException if the request names another model."""
        requested = body.get("model") if isinstance(body, dict) else None
        if isinstance(requested, str) and requested != self.name:
            raise HTTPException(404, f"There is no model {requested[:80]!r} here, but {self.name!r}.")

    async def run_model(self, function: Callable[[], Any]) -> Any:
        """Run a function that uses the model in the model's thread, one request at a time."""
        return await self._model_thread.run(function)

    async def run_in_thread(self, function: Callable[[], Any]) -> Any:
        """Run a function that takes CPU time, such as tokenizing long texts, in a thread."""
        return await self._cpu_threads.run(function)

    async def page(self, request: Request) -> Response:
        """Serve the page."""
        page = await self.run_in_thread(lambda: PAGE.read_text(encoding="utf-8"))
        return HTMLResponse(page, headers={"Content-Security-Policy": page_policy(page)})

    async def health(self, request: Request) -> Response:
        """Return status 200, or 503 if the thread that owns the model has failed."""
        failed = self.batcher is not None and self.batcher.failed
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def show_metrics(self, request: Request) -> Response:
        """Return metrics in Prometheus's text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """List the model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Describe the model named in the path."""
        self.check_model({"model": request.path_params["name"]})
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        more = {"head": self.lm.head, "tasks": self.tasks, "writes": self.batcher is not None}
        more["chats"] = self.batcher is not None and chat_template(self.lm.tokenizer) is not None
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "local", **more}

    async def embeddings(self, body: Any, deadline: float) -> Response:
        """Return a vector per text, in OpenAI's format."""
        self.check_model(body)
        given = schemas.check(body, schemas.EMBEDDINGS, ("input",))
        form, texts = given.get("encoding_format", "float"), schemas.inputs(given["input"])
        if not 1 <= len(texts) <= _MAX_INPUTS or not all(map(len, texts)):
            raise UserError(f"input must be a text or a list of 1 to {_MAX_INPUTS} texts that are not empty.")
        if form not in ("float", "base64"):
            raise UserError(f"encoding_format is {form!r}; it must be float or base64.")
        if self.lm.definition.arch.kind == "encoder-decoder":
            raise UserError("This model is an encoder-decoder; embeddings require an encoder or a decoder.")
        named = {name: given.get(name) for name in ("prompt_name", "prompt")}

        def run() -> Response:
            with schemas.prefix_errors("prompt_name"):
                prefix = resolve_prompt(self.lm.embedding or EmbeddingConfig(), texts, **named)
            arch, vectors = self.lm.definition.arch, dict[int, np.ndarray]()
            ids: Any = texts
            if isinstance(texts[0], str):
                ids = self.lm.tokenizer.encode_batch([f"{prefix}{text}" for text in texts])
            left = sorted(range(len(texts)), key=lambda number: len(ids[number]), reverse=True)
            while left:  # the longest first, in batches that fit into memory
                self._model_thread.check_wanted()
                length = min(len(ids[left[0]]), arch.max_length or len(ids[left[0]]))
                count = min(_BATCH_SIZE, max_batch_size("input", arch, length))
                batch, left = left[:count], left[count:]
                with schemas.prefix_errors("input"):
                    embedded = self.lm.embed([texts[number] for number in batch], **named).astype("<f4")
                vectors |= dict(zip(batch, embedded, strict=True))
            self._model_thread.check_wanted()
            values = [
                vectors[number].tolist() if form == "float" else base64.b64encode(vectors[number].tobytes()).decode()
                for number in range(len(texts))
            ]
            data = [{"object": "embedding", "index": number, "embedding": x} for number, x in enumerate(values)]
            usage = dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(len, ids)))
            return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

        return await self.run_model(run)

    async def predict(self, body: Any, deadline: float) -> Response:
        """Run a task of lm_research.pipeline."""
        self.check_model(body)
        given = schemas.check(body, schemas.PREDICT, ("task", "inputs"))
        task, inputs, options = given["task"], given["inputs"], given.get("options", {})
        if task not in self.tasks:
            raise UserError(f"This model has no task {task!r} here. Its tasks: {', '.join(self.tasks) or 'none'}.")
        if isinstance(inputs, list) and not 1 <= len(inputs) <= _MAX_INPUTS:
            raise UserError(f"inputs must be one input, or a list of 1 to {_MAX_INPUTS}.")
        for one in inputs if isinstance(inputs, list) else [inputs]:
            if not isinstance(one, str | dict):
                raise UserError("Each of inputs must be a text or an object.")

        _check_num_labels(inputs, options)

        def run() -> Response:
            if task not in self._pipelines:
                self._pipelines[task] = pipeline(task, self.lm)
                self._pipelines[task].split_batch = self._split_batch
            try:
                with schemas.prefix_errors("options"):
                    PIPELINES[task].check_options(task, options)
                with schemas.prefix_errors("inputs"):
                    outputs = _to_json(self._pipelines[task](inputs, **options))
            except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
                raise UserError(f"The task {task} does not accept these inputs and options: {error}.") from error
            return JSONResponse({"model": self.name, "task": task, "outputs": outputs})

        return await self.run_model(run)

    def _split_batch(self, rows: int, length: int) -> Iterator[slice]:
        """Yield slices of a batch that fit into memory, as long as the client waits."""
        count = max_batch_size("inputs", self.lm.definition.arch, length)
        for first in range(0, rows, count):
            self._model_thread.check_wanted()
            yield slice(first, first + count)

    async def inspect(self, body: Any, deadline: float) -> Response:
        """Return the tokens of a text and the attentions of all layers."""
        self.check_model(body)
        given = schemas.check(body, schemas.INSPECT, ("text",))
        if self.lm.definition.arch.encoder is not None:
            raise UserError("This model is an encoder-decoder; attentions are returned for encoders and decoders only.")
        if not given["text"]:
            raise UserError("text has no tokens.")

        def run() -> Response:
            with schemas.prefix_errors("text"):
                inputs = self.lm.inputs([given["text"]])
            length = int(inputs["attention_mask"].sum())
            if length > _MAX_INSPECTED:
                raise UserError(f"text has {length} tokens; attentions are returned for at most {_MAX_INSPECTED}.")
            outputs = self.lm(**inputs, output_attentions=True)["attentions"]
            mask_L = inputs["attention_mask"][0] > 0
            attentions = [np.round(np.asarray(layer)[0][:, mask_L][:, :, mask_L], 4).tolist() for layer in outputs]
            tokens = self.lm.tokenizer.pieces(inputs["input_ids"][0][mask_L])
            return JSONResponse({"tokens": tokens, "attentions": attentions})

        return await self.run_model(run)

    async def completions(self, body: Any, deadline: float) -> Response:
        """Continue prompts, in OpenAI's format."""
        return await self._generate(lambda: schemas.completion(body), body, False, deadline)

    async def chat(self, body: Any, deadline: float) -> Response:
        """Reply to messages, in OpenAI's format."""
        return await self._generate(lambda: schemas.chat(body, self.lm), body, True, deadline)

    async def _generate(
        self, make: Callable[[], schemas.CompletionRequest], body: Any, chat: bool, deadline: float
    ) -> Response:
        self.check_model(body)
        if self.completion_service is None:
            raise UserError(f"This model has the head {self.lm.head!r} and cannot generate text. Use /v1/predict.")
        answer = await self.completion_service.answer(make, chat, deadline)
        return answer if isinstance(answer, Response) else await self.run_in_thread(lambda: JSONResponse(answer))


def _check_num_labels(inputs: Any, options: dict[str, Any]) -> None:
    """Raise a UserError for requests that are too large: each label is read with each input, and so is each sentence."""
    several = inputs if isinstance(inputs, list) else [inputs]
    for one in filter(lambda one: isinstance(one, dict), several):
        for name, value in one.items():
            if isinstance(value, list) and len(value) * len(several) > _MAX_INPUTS:
                raise UserError(
                    f"{str(name)[:80]} of inputs has {len(value)} values; a request has at most {_MAX_INPUTS}."
                )
    for name, value in options.items():
        labels = len(value) if isinstance(value, list) else value.count(",") + 1 if isinstance(value, str) else 1
        if labels * len(several) > _MAX_INPUTS and labels > 1:
            raise UserError(
                f"{name[:80]} of options has {labels} values for {len(several)} inputs; together at most {_MAX_INPUTS} are read."
            )
    size = options.get("batch_size")
    if isinstance(size, int) and size > _MAX_INPUTS:
        raise UserError(f"options.batch_size={size} must be at most {_MAX_INPUTS}.")


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected; the body has been read, so no other message can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _to_json(value: Any) -> Any:
    """Convert NumPy numbers and arrays to JSON values."""
    if isinstance(value, dict):
        return {name: _to_json(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(x) for x in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
