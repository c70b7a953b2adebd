"""Texts, and how well a language model foretells them: perplexity and bits per byte of whole records.

A causal model reads each text by itself, in windows of its length, each token asked for once; of a masked model the numbers come from
pseudo-log-likelihoods (pseudo-perplexity, Salazar et al. 2020), and do not compare with a causal model's.
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

_LONGEST = 1024  # tokens read at a time, of models that can read more


class LanguageModelPredictor:
    """One model on the texts of one file; see runner.Predictor."""

    labels: tuple[str, ...] = ()

    def __init__(
        self, entry: Entry, path: pathlib.Path, workdir: pathlib.Path, batch_size: int, dtype: str | None, mesh: Any
    ) -> None:
        """Reads the model and the texts; raises a UserError where they do not fit."""
        self.lm, self.size = from_pretrained(path, dtype=dtype), batch_size
        masked = self.lm.head in HEADS
        if self.lm.tokenizer is None or not masked and self.lm.head != "causal_lm":
            raise ConfigError(
                f"Task {entry.name} needs a masked or a causal language model with a tokenizer, but {path} has "
                f"{'none' if self.lm.tokenizer is None else f'head {self.lm.head!r}'}."
            )
        self.pseudo = PseudoLikelihood(self.lm) if masked else None
        self.tokenizer = self.lm.tokenizer
        self.start, own = text_start(self.tokenizer), self.lm.context_length
        self.length = entry.max_length or min(_LONGEST, own or _LONGEST)
        if self.lm.definition.arch.positions == "learned":
            self.length = min(self.length, own or self.length)
        if self.start is None and not masked:
            raise ConfigError(f"{path}: the tokenizer has no token that begins a text. Name bos_token in its config.")
        self.records = list(read_records(entry.data, resolve({})))
        self.texts = [record.text(entry.text_key, "text_key") for record in self.records]
        for record, text in zip(self.records, self.texts, strict=True):
            if not text.strip():
                raise DataError(f"{record.where} has an empty text in field {entry.text_key!r}. Leave it out.")
        if not self.texts:
            raise DataError(f"{entry.data} holds no records. Give another file to task {entry.name}.")
        self.num_batches = ceil_div(len(self.texts), batch_size)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Log-probability [nats] and number of tokens of each text of a batch."""
        first = number * self.size
        texts = self.texts[first : first + self.size]
        try:
            found = self.pseudo(self.pseudo.encode(texts)) if self.pseudo else self._causal(texts)
        except UserError as error:
            raise DataError(f"From {self.records[first].where} on, among {len(texts)} records: {error}") from error
        return {"nats": np.array([x.sum() for x in found]), "tokens": np.array([len(x) for x in found])}

    def _causal(self, texts: list[str]) -> list[np.ndarray]:
        assert self.start is not None
        rows = self.tokenizer.encode_batch(texts)
        parts = [(i, *pair) for i, row in enumerate(rows) for pair in windows(row, self.start, self.length)]
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for start in range(0, len(parts), self.size):
            numbers, before, asked = zip(*parts[start : start + self.size], strict=True)
            for number, (log, _) in zip(
                numbers, token_logprobs_of_rows(engine_of(self.lm), before, asked), strict=True
            ):
                found[number].append(log.astype(np.float64))
        return [np.concatenate(one) for one in found]

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """A line for each text."""
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
