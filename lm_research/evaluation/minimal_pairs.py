"""Minimal pairs (BLiMP, Warstadt et al. 2020; CrowS-Pairs): does a model assign the acceptable sentence a higher probability?

A masked model scores a sentence by its pseudo-log-likelihood, a causal model by its log-likelihood after the token that
begins texts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_research.common.rounding import ceil_div
from lm_research.config import resolve
from lm_research.decoding.generate import score
from lm_research.decoding.prompts import text_start
from lm_research.decoding.pseudo_likelihood import HEADS, PseudoLikelihood, common_tokens
from lm_research.errors import ConfigError, DataError, UserError
from lm_research.evaluation.suite import Entry
from lm_research.pretrained import LanguageModel, from_pretrained
from lm_research.tasks.records import Record, read_records

_BATCH_SIZE = 32  # copies of sentences, each with one token masked


class MinimalPairPredictor:
    """Scores the pairs of one file with one model; see runner.Predictor."""

    labels: tuple[str, ...] = ()

    def __init__(
        self, entry: Entry, path: pathlib.Path, workdir: pathlib.Path, batch_size: int, dtype: str | None, mesh: Any
    ) -> None:
        """Read the model and the pairs; raise a UserError if they do not fit together."""
        self.lm, self.entry = from_pretrained(path, dtype=dtype), entry
        if self.lm.tokenizer is None:
            raise ConfigError(f"{path} has no tokenizer, so it cannot read texts. Put its files there.")
        masked = self.lm.head in HEADS
        if not masked and self.lm.head != "causal_lm":
            raise ConfigError(
                f"Task {entry.name} needs a masked or a causal language model, but {path} has head {self.lm.head!r}."
            )
        if entry.scored == "shared" and not masked:
            raise ConfigError(
                f"Task {entry.name}: `scored: shared` predicts tokens from the tokens on both sides, which requires a masked model. Set "
                "`scored: all`, or use another model."
            )
        self.pseudo = PseudoLikelihood(self.lm, _BATCH_SIZE) if masked else None
        self.records = list(read_records(entry.data, resolve({})))
        if not self.records:
            raise DataError(f"{entry.data} contains no records. Give another file to task {entry.name}.")
        self.pairs = [(_text(record, entry.good_key), _text(record, entry.bad_key)) for record in self.records]
        self.batch_size, self.num_batches = batch_size, ceil_div(len(self.pairs), batch_size)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Return the log-probability [nats] and the number of tokens of both sentences of each pair of a batch."""
        first = number * self.batch_size
        pairs = self.pairs[first : first + self.batch_size]
        try:
            good, bad = self._pseudo(self.pseudo, pairs) if self.pseudo else likelihoods(self.lm, pairs)
        except UserError as error:
            where = self.records[first].where
            raise DataError(f"In {len(pairs)} records from {where} on: {error}") from error
        sides = {"good": good, "bad": bad}
        nats = {f"{name}_nats": np.array([x.sum() for x in side]) for name, side in sides.items()}
        return nats | {f"{name}_tokens": np.array([len(x) for x in side]) for name, side in sides.items()}

    def _pseudo(
        self, pseudo: PseudoLikelihood, pairs: list[tuple[str, str]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        sides = [pseudo.encode([pair[side] for pair in pairs]) for side in (0, 1)]
        if self.entry.scored == "shared":
            shared = [common_tokens(*pair) for pair in zip(*sides, strict=True)]
            sides = [[pair[side] for pair in shared] for side in (0, 1)]
        log_probs = pseudo([*sides[0], *sides[1]])
        return log_probs[: len(pairs)], log_probs[len(pairs) :]

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
        """Yield a prediction for each pair."""
        columns = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        for number, (record, pair) in enumerate(zip(self.records, self.pairs, strict=True)):
            values = {name: x[number].item() for name, x in columns.items()}
            group = record.get(self.entry.slice_key, "slice_key") if self.entry.slice_key else None
            yield {
                "record": number,
                "where": record.where,
                "good": pair[0],
                "bad": pair[1],
                **({} if group is None else {"group": str(group)}),
                **values,
            }


def likelihoods(lm: LanguageModel, pairs: list[tuple[str, str]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the log-probabilities [nats] of the tokens of the first and of the second sentences under a causal model."""
    tokenizer = lm.tokenizer
    start = None if tokenizer is None else text_start(tokenizer)
    if tokenizer is None or start is None:
        raise UserError(
            "The tokenizer has no token that begins a text, so the first word cannot be predicted. Set bos_token in "
            "tokenizer_config.json."
        )
    ids = tokenizer.encode_batch([pair[side] for side in (0, 1) for pair in pairs])
    log_probs = score(lm, input_ids=[[start]] * len(ids), continuations=ids)
    return log_probs[: len(pairs)], log_probs[len(pairs) :]


def _text(record: Record, key: str) -> str:
    value = record.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{record.where} has no sentence in field {key!r}; its fields: {', '.join(record.fields)}. Fix the record, or set "
            "good_key and bad_key in the suite."
        )
    return value
