"""Requests that cannot run in slots, because the rows of a batch cannot share their decoding strategy, such as beam search.

They run `generate` in separate threads, a few tokens at a time, so that the steps of the slots run in between, also while a
program of a new shape is compiled. Each text is delivered at its end.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from lm_research.common.rounding import bucket_size
from lm_research.decoding.engine import PROGRAMS
from lm_research.decoding.generate import GenerateOutput, in_pieces
from lm_research.decoding.logits_processors import table_shape
from lm_research.decoding.streaming import continuation
from lm_research.errors import UserError
from lm_research.serving.batcher import Busy, Event, RequestStream
from lm_research.tokenizers.base import Tokenizer

LOG = logging.getLogger("lm_research")
TOKENS_PER_CALL = 4  # between two checks for cancellation, and the most that a step of the slots waits for
# Arguments that only `generate` supports, with their neutral values; the slots support all others.
ARGUMENTS: dict[str, Any] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "force_words_ids": None,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "src_lang": None,
    "tgt_lang": None,
}


@dataclasses.dataclass(eq=False)
class SequentialJob:
    """A request.

    Attributes:
      streams: its texts, `copies` for each prompt.
      arguments: arguments of `generate`.
      copies: number of texts per prompt.
      stops: stop strings, which are not part of a text.
    """

    streams: list[RequestStream]
    arguments: Mapping[str, Any]
    copies: int
    stops: list[str]

    @property
    def expired(self) -> bool:
        """Whether the client no longer waits or the deadline is over."""
        return all(stream.expired for stream in self.streams)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Approximate key of its compiled programs: jobs with equal keys probably share them."""
        sizes = "max_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences"
        lengths = (max(len(stream.source or stream.tokens) for stream in self.streams), len(self.streams))
        words = [
            table_shape(self.arguments[name])
            for name in ("bad_words_ids", "force_words_ids")
            if self.arguments.get(name)
        ]
        numbers = (*(self.arguments.get(name) or 1 for name in sizes), *lengths)
        return tuple(map(bucket_size, numbers)), tuple(words), frozenset(self.arguments), self.arguments["do_sample"]


class SequentialWorker:
    """Runs a queue of jobs in two threads: one for jobs whose programs are probably compiled, one for all other jobs.

    Only jobs that need a new program therefore wait for a compilation.
    """

    def __init__(self, lm: Any, max_queue: int) -> None:
        self.lm, self.max_queue, self._closed = lm, max_queue, False
        self._jobs: dict[bool, SequentialJob] = {}
        self._compiled: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=PROGRAMS)
        self._queue: collections.deque[SequentialJob] = collections.deque()
        self._wake = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(compiled,), name="sequential", daemon=True)
            for compiled in (True, False)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active(self) -> int:
        """Number of running jobs."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return len(self._queue)

    def submit(self, job: SequentialJob) -> None:
        """Queue a job; raise Busy if the queue is full."""
        with self._wake:
            for expired in [other for other in self._queue if other.expired]:
                self._queue.remove(expired)
                _end(expired, "timeout")
            if self._closed or len(self._queue) > self.max_queue:
                raise Busy
            self._queue.append(job)
            self._wake.notify_all()

    def abandon(self) -> list[RequestStream]:
        """End all texts because the server stops, and return them; the current calls may still finish."""
        with self._wake:
            self._closed, left = True, [*self._queue, *self._jobs.values()]
            self._queue.clear()
            self._wake.notify_all()
        for job in left:
            for stream in job.streams:
                stream.canceled = True
            _end(job, "closing")
        return [stream for job in left for stream in job.streams]

    def close(self, seconds: float | None = None) -> bool:
        """End the threads after their current calls, and return whether they ended within `seconds`; queued jobs fail."""
        with self._wake:
            self._closed, left = True, list(self._queue)
            self._queue.clear()
            self._wake.notify_all()
        for job in left:
            _end(job, "error")
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _next(self, compiled: bool) -> SequentialJob | None:
        """Wait for the next job whose shape is (not) compiled; None if the worker is closed."""
        with self._wake:
            self._jobs.pop(compiled, None)
            while not self._closed:
                job = next((job for job in self._queue if (job.shape in self._compiled) == compiled), None)
                if job is not None:
                    self._queue.remove(job)
                    self._jobs[compiled] = job
                    return job
                self._wake.wait()
            return None

    def _run(self, compiled: bool) -> None:
        while (job := self._next(compiled)) is not None:
            try:
                self._generate(job)
            except UserError as error:
                _end(job, "refused", str(error))
            except BaseException:  # bindings of other languages raise such exceptions
                LOG.exception("a request failed")
                _end(job, "error")

    def _generate(self, job: SequentialJob) -> None:
        if self._is_over(job):
            return
        rows = [stream.source or stream.tokens for stream in job.streams[:: job.copies]]
        output = None
        for partial in in_pieces(self.lm, rows, TOKENS_PER_CALL, **job.arguments):
            if self._is_over(job):
                return
            output = partial
        assert output is not None, "the last output is complete"
        for number, stream in enumerate(job.streams):  # copies that cannot differ share one output
            row = number * len(output.new_tokens) // len(job.streams)
            _deliver(stream, output, row, job.stops, self.lm.tokenizer)
        with self._wake:
            if job.shape not in self._compiled:
                self._compiled.append(job.shape)
                self._wake.notify_all()

    def _is_over(self, job: SequentialJob) -> bool:
        """Return whether a job must stop, after delivering the reason."""
        if self._closed:
            _end(job, "error")
        elif job.expired:
            _end(job, "timeout")
        return self._closed or job.expired


def _end(job: SequentialJob, finish: str, reason: str = "") -> None:
    for stream in job.streams:
        stream.deliver(Event(reason, finish=finish))


def _deliver(stream: RequestStream, output: GenerateOutput, row: int, stops: list[str], tokenizer: Tokenizer) -> None:
    """Deliver the tokens of a text, and the text with the last one."""
    tokens = output.new_tokens[row]
    text = continuation(tokenizer, stream.before, tokens)
    cuts = [start for stop in stops if (start := text.find(stop)) >= 0]
    ended = bool(cuts) or tokens[-1] in stream.options.ends
    text = text[: min(cuts)] if cuts else text
    stream.num_generated = len(tokens)
    for index in range(len(tokens)) if stream.logprobs else [len(tokens) - 1]:
        event = Event(token=tokens[index])
        if stream.logprobs and output.logprobs is not None:
            event.offset = min(len(text), len(continuation(tokenizer, stream.before, tokens[:index])))
            event.logprob = float(output.logprobs[row][index])
            stream.total += event.logprob
            if output.top_ids is not None and output.top_logprobs is not None:
                best = output.top_ids[row][index].tolist(), output.top_logprobs[row][index].tolist()
                event.best = list(zip(*best, strict=True))
        if index == len(tokens) - 1:
            event.text, event.finish = text, "stop" if ended else "length"
        stream.deliver(event)
