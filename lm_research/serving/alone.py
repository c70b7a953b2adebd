"""Requests whose ways of decoding rows of one batch can't share, such as beams: one at a time, beside the slots.

They run through `generate` in a thread of their own, a few tokens at a time, so that the steps of the slots come in between
(while a program of a new shape is compiled, too). Their texts are known at their ends and come in one piece each.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from lm_research.decoding.generate import GenerateOutput, in_pieces
from lm_research.decoding.streaming import continuation
from lm_research.errors import UserError
from lm_research.serving.batcher import Busy, Event, Writer

LOG = logging.getLogger("lm_research")
PIECE = 4  # tokens between two looks at who is gone, and the longest that a step of the slots waits for
# What only `generate` can do, with the value that asks for nothing; all else of a request is done in the slots, too.
ARGUMENTS: dict[str, Any] = {
    "num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "force_words_ids": None, "no_repeat_ngram_size": 0, "bad_words_ids": None, "src_lang": None, "tgt_lang": None,
}  # fmt: skip


@dataclasses.dataclass
class Job:
    """A request.

    Attributes:
      writers: its texts: `copies` of each prompt.
      arguments: of `generate`.
      stops: texts that end a text before themselves.
    """

    writers: list[Writer]
    arguments: Mapping[str, Any]
    copies: int
    stops: list[str]


class Alone:
    """A queue of jobs and the thread that does them.

    Attributes:
      active: jobs under way (0 or 1); waiting: jobs before it.
    """

    def __init__(self, lm: Any, max_queue: int) -> None:
        self.lm, self.active, self._closed = lm, 0, False
        self._queue: queue.Queue[Job | None] = queue.Queue(max_queue + 1)
        self._thread = threading.Thread(target=self._run, name="alone", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def submit(self, job: Job) -> None:
        """Lets a job wait; raises Busy if too many do."""
        try:
            self._queue.put_nowait(job)
        except queue.Full as full:
            raise Busy from full

    def close(self) -> None:
        """Ends the thread after the piece that it is at; jobs that wait get an error."""
        self._closed = True
        with self._queue.mutex:
            left = [job for job in self._queue.queue if job is not None]
            self._queue.queue.clear()
        self._queue.put(None)
        self._thread.join()
        for job in left:
            _end(job, "error")

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self.active = 1
            try:
                self._do(job)
            except UserError as mistake:
                _end(job, "refused", str(mistake))
            except Exception:
                LOG.exception("a request failed")
                _end(job, "error")
            self.active = 0

    def _do(self, job: Job) -> None:
        if self._over(job):
            return
        rows = [writer.source or writer.tokens for writer in job.writers[:: job.copies]]
        output = None
        for found in in_pieces(self.lm, rows, PIECE, **job.arguments):
            if self._over(job):
                return
            output = found
        for number, writer in enumerate(job.writers):  # of copies that can't differ there is one text
            row = number * len(output.new_tokens) // len(job.writers)
            _tell(writer, output, row, job.stops, self.lm.tokenizer)

    def _over(self, job: Job) -> bool:
        """Whether nobody waits for a job any more, or its time is up, of which it is told."""
        if self._closed:
            _end(job, "error")
        elif time.monotonic() > job.writers[0].deadline:
            _end(job, "timeout")
        elif not all(writer.cancelled for writer in job.writers):
            return False
        return True


def _end(job: Job, finish: str, reason: str = "") -> None:
    for writer in job.writers:
        writer.deliver(Event(reason, finish=finish))


def _tell(writer: Writer, output: GenerateOutput, row: int, stops: list[str], tokenizer: Any) -> None:
    """Delivers a text: its tokens, and with the last one what they say."""
    tokens = output.new_tokens[row]
    text = continuation(tokenizer, writer.before, tokens)
    cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
    ended = bool(cuts) or tokens[-1] in writer.options.ends
    text = text[: min(cuts)] if cuts else text
    writer.said = len(tokens)
    for place in range(len(tokens)) if writer.logprobs else [len(tokens) - 1]:
        event = Event(token=tokens[place])
        if writer.logprobs:
            event.offset = min(len(text), len(continuation(tokenizer, writer.before, tokens[:place])))
            event.logprob = float(output.logprobs[row][place])
            writer.total += event.logprob
            if output.top_ids is not None:
                best = output.top_ids[row][place].tolist(), output.top_logprobs[row][place].tolist()
                event.best = list(zip(*best, strict=True))
        if place == len(tokens) - 1:
            event.text, event.finish = text, "stop" if ended else "length"
        writer.deliver(event)
