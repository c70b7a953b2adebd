"""Requests whose ways of decoding rows of one batch can't share, such as beams: beside the slots.

They run through `generate` in threads of their own, a few tokens at a time, so that the steps of the slots come in between
(while a program of a new shape is compiled, too). Their texts are known at their ends and come in one piece each.
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
PIECE = 4  # tokens between two looks at who is gone, and the longest that a step of the slots waits for
# What only `generate` can do, with the value that asks for nothing; all else of a request is done in the slots, too.
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
      writers: its texts: `copies` of each prompt.
      arguments: of `generate`.
      stops: texts that end a text before themselves.
    """

    writers: list[RequestStream]
    arguments: Mapping[str, Any]
    copies: int
    stops: list[str]

    @property
    def dead(self) -> bool:
        """Whether nobody waits any more, or only for being told that it is too late."""
        return all(writer.dead for writer in self.writers)

    @property
    def shape(self) -> tuple[Any, ...]:
        """What its programs are compiled for, roughly: jobs of one shape are likely to share them."""
        sizes = "max_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences"
        lengths = (max(len(writer.source or writer.tokens) for writer in self.writers), len(self.writers))
        words = [
            table_shape(self.arguments[name])
            for name in ("bad_words_ids", "force_words_ids")
            if self.arguments.get(name)
        ]
        numbers = (*(self.arguments.get(name) or 1 for name in sizes), *lengths)
        return tuple(map(bucket_size, numbers)), tuple(words), frozenset(self.arguments), self.arguments["do_sample"]


class SequentialWorker:
    """A queue of jobs and two threads that do them: one those for which there are programs, likely, one those that need new ones.

    So nobody waits for the compilation of what others ask for, but those who need one themselves.

    Attributes:
      active: jobs under way; waiting: jobs before them.
    """

    def __init__(self, lm: Any, max_queue: int) -> None:
        self.lm, self.max_queue, self._closed = lm, max_queue, False
        self._jobs: dict[bool, SequentialJob] = {}
        self._known: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=PROGRAMS)
        self._queue: collections.deque[SequentialJob] = collections.deque()
        self._wake = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(known,), name="alone", daemon=True) for known in (True, False)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def active(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, job: SequentialJob) -> None:
        """Lets a job wait; raises Busy if too many do."""
        with self._wake:
            for late in [one for one in self._queue if one.dead]:
                self._queue.remove(late)
                _end(late, "timeout")
            if self._closed or len(self._queue) > self.max_queue:
                raise Busy
            self._queue.append(job)
            self._wake.notify_all()

    def abandon(self) -> list[RequestStream]:
        """Tells all whose texts are under way that the server ends, and whose they were. The piece under way may still go on."""
        with self._wake:
            self._closed, left = True, [*self._queue, *self._jobs.values()]
            self._queue.clear()
            self._wake.notify_all()
        for job in left:
            for writer in job.writers:
                writer.canceled = True
            _end(job, "closing")
        return [writer for job in left for writer in job.writers]

    def close(self, seconds: float | None = None) -> bool:
        """Ends the threads after the pieces that they are at, whether that was within some seconds; jobs that wait get an error."""
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

    def _next(self, known: bool) -> SequentialJob | None:
        """The next job of a kind, None at the end."""
        with self._wake:
            self._jobs.pop(known, None)
            while not self._closed:
                job = next((job for job in self._queue if (job.shape in self._known) == known), None)
                if job is not None:
                    self._queue.remove(job)
                    self._jobs[known] = job
                    return job
                self._wake.wait()
            return None

    def _run(self, known: bool) -> None:
        while (job := self._next(known)) is not None:
            try:
                self._do(job)
            except UserError as mistake:
                _end(job, "refused", str(mistake))
            except BaseException:  # libraries of other languages have such of their own
                LOG.exception("a request failed")
                _end(job, "error")

    def _do(self, job: SequentialJob) -> None:
        if self._over(job):
            return
        rows = [writer.source or writer.tokens for writer in job.writers[:: job.copies]]
        output = None
        for found in in_pieces(self.lm, rows, PIECE, **job.arguments):
            if self._over(job):
                return
            output = found
        assert output is not None, "the last piece is the whole"
        for number, writer in enumerate(job.writers):  # of copies that can't differ there is one text
            row = number * len(output.new_tokens) // len(job.writers)
            _tell(writer, output, row, job.stops, self.lm.tokenizer)
        with self._wake:
            if job.shape not in self._known:
                self._known.append(job.shape)
                self._wake.notify_all()

    def _over(self, job: SequentialJob) -> bool:
        """Whether nobody waits for a job any more, or its time is up, of which it is told."""
        if self._closed:
            _end(job, "error")
        elif job.dead:
            _end(job, "timeout")
        return self._closed or job.dead


def _end(job: SequentialJob, finish: str, reason: str = "") -> None:
    for writer in job.writers:
        writer.deliver(Event(reason, finish=finish))


def _tell(writer: RequestStream, output: GenerateOutput, row: int, stops: list[str], tokenizer: Tokenizer) -> None:
    """Delivers a text: its tokens, and with the last one what they say."""
    tokens = output.new_tokens[row]
    text = continuation(tokenizer, writer.before, tokens)
    cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
    ended = bool(cuts) or tokens[-1] in writer.options.ends
    text = text[: min(cuts)] if cuts else text
    writer.said = len(tokens)
    for place in range(len(tokens)) if writer.logprobs else [len(tokens) - 1]:
        event = Event(token=tokens[place])
        if writer.logprobs and output.logprobs is not None:
            event.offset = min(len(text), len(continuation(tokenizer, writer.before, tokens[:place])))
            event.logprob = float(output.logprobs[row][place])
            writer.total += event.logprob
            if output.top_ids is not None and output.top_logprobs is not None:
                best = output.top_ids[row][place].tolist(), output.top_logprobs[row][place].tolist()
                event.best = list(zip(*best, strict=True))
        if place == len(tokens) - 1:
            event.text, event.finish = text, "stop" if ended else "length"
        writer.deliver(event)
