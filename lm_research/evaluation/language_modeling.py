"""Log-likelihood of texts under a language model, for perplexity and bits per byte.

A causal model reads each text separately, in windows of its maximum length, and predicts each token once. For a masked model
the numbers are pseudo-log-likelihoods (pseudo-perplexity, Salazar et al. 2020), which are not comparable with a causal
model's.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.config import resolve
from lm_research.decoding.generation_request import engine_of
from lm_research.decoding.prompts import text_start
from lm_research.decoding.pseudo_likelihood import HEADS, PseudoLikelihood
from lm_research.decoding.scoring import token_logprobs_of_rows, windows
from lm_research.errors import ConfigError, DataError, UserError
from lm_research.evaluation.suite import Entry
from lm_research.pretrained import from_pretrained
from lm_research.tasks.records import read_records

_MAX_WINDOW = 1024  # tokens read at a time, also by models that can read more


class LanguageModelPredictor:
    """Scores the texts of one file with one model; see runner.Predictor."""

    labels: tuple[str, ...] = ()

    def __init__(
        self, entry: Entry, path: pathlib.Path, workdir: pathlib.Path, batch_size: int, dtype: str | None, mesh: Any
    ) -> None:
        """Read the model and the texts; raise a UserError if they do not fit together."""
        self.lm, self.batch_size = from_pretrained(path, dtype=dtype), batch_size
        masked = self.lm.head in HEADS
        if self.lm.tokenizer is None or not masked and self.lm.head != "causal_lm":
            raise ConfigError(
                f"Task {entry.name} needs a masked or a causal language model with a tokenizer, but {path} has "
                f"{'none' if self.lm.tokenizer is None else f'head {self.lm.head!r}'}."
            )
        self.pseudo = PseudoLikelihood(self.lm) if masked else None
        self.tokenizer = self.lm.tokenizer
        self.start_id, context_length = text_start(self.tokenizer), self.lm.context_length
        self.length = entry.max_length or min(_MAX_WINDOW, context_length or _MAX_WINDOW)
        if self.lm.definition.arch.positions == "learned":
            self.length = min(self.length, context_length or self.length)
        if self.start_id is None and not masked:
            raise ConfigError(
                f"{path}: the tokenizer has no token that begins a text. Set bos_token in tokenizer_config.json."
            )
        self.records = list(read_records(entry.data, resolve({})))
        self.texts = [record.text(entry.text_key, "text_key") for record in self.records]
        for record, text in zip(self.records, self.texts, strict=True):
            if not text.strip():
                raise DataError(f"{record.where} has an empty text in field {entry.text_key!r}. Remove the record.")
        if not self.texts:
            raise DataError(f"{entry.data} contains no records. Give another file to task {entry.name}.")
        self.num_batches = ceil_div(len(self.texts), batch_size)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Return the log-probability [nats] and the number of tokens of each text of a batch."""
        first = number * self.batch_size
        texts = self.texts[first : first + self.batch_size]
        try:
            log_probs = self.pseudo(self.pseudo.encode(texts)) if self.pseudo else self._causal(texts)
        except UserError as error:
            raise DataError(f"In {len(texts)} records from {self.records[first].where} on: {error}") from error
        return {"nats": np.array([x.sum() for x in log_probs]), "tokens": np.array([len(x) for x in log_probs])}

    def _causal(self, texts: list[str]) -> list[np.ndarray]:
        assert self.start_id is not None
        rows = self.tokenizer.encode_batch(texts)
        calls = [(i, *pair) for i, row in enumerate(rows) for pair in windows(row, self.start_id, self.length)]
        log_probs: list[list[np.ndarray]] = [[] for _ in texts]
        for start in range(0, len(calls), self.batch_size):
            numbers, prefixes, targets = zip(*calls[start : start + self.batch_size], strict=True)
            scored = token_logprobs_of_rows(engine_of(self.lm), prefixes, targets)
            for number, (log_probs_T, _) in zip(numbers, scored, strict=True):
                log_probs[number].append(log_probs_T.astype(np.float64))
        return [np.concatenate(parts) for parts in log_probs]

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """Yield a prediction for each text."""
        nats, tokens = (np.concatenate([output[name] for output in outputs]) for name in ("nats", "tokens"))
        for number, (record, text) in enumerate(zip(self.records, self.texts, strict=True)):
            yield {
                "record": number,
                "where": record.where,
                "text": text,
                "nats": float(nats[number]),
                "tokens": int(tokens[number]),
                "words": len(text.split()),
                "bytes": len(text.encode()),
            }
