"""BERT's pre-training (Devlin et al. 2018, section 3.1): masked tokens, and whether B follows A.

Examples follow the paper's released data generator where an index allows it. A document's sentences are grouped once
into chunks that fill a row. An example is a chunk, cut anew each epoch into A and B at a random sentence boundary;
half of the time B is replaced by text from another document. (The released generator then puts the unused half
back into the stream, which only a sequential reader can do; here it comes with another epoch's cut.) A tenth of
the examples are cut to a random shorter length.

Legend: B batch, L length, M masked positions.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.config import Config
from lm_research.data.random import example_keys, uniform
from lm_research.data.store import TokenStore
from lm_research.data.tokenizer import Tokenizer
from lm_research.objectives.base import Batch, Objective, Sums
from lm_research.objectives.cross_entropy import token_loss


def group_sentences(store: TokenStore, room: int) -> np.ndarray:
    """Chunks [n, 3] of (document, first sentence, sentence after the last), each holding `room` tokens if it can.

    Sentences are added until their tokens reach `room` (the last may exceed it and is truncated later). A document's
    last chunk takes one sentence back from the chunk before it if it would have only one, so that it can be a pair.
    """
    sentence_starts, documents = np.asarray(store.sentence_starts), np.asarray(store.document_starts)
    chunks = []
    for document, (first, end) in enumerate(zip(documents[:-1], documents[1:], strict=True)):
        start = first
        while start < end:
            stop = int(np.searchsorted(sentence_starts, sentence_starts[start] + room, side="left"))
            stop = min(max(stop, start + 1), end)
            overlap = stop - start == 1 and stop == end and start > first
            chunks.append((document, start - overlap, stop))
            start = stop
    return np.asarray(chunks, np.int64).reshape(-1, 3)


class MaskedPairs:
    """Rows [CLS] A [SEP] B [SEP] (or [CLS] A [SEP]) with masked tokens, by number."""

    # Numbers of the draws of an example's random stream; mask draws come after.
    SHORT, SHORT_LENGTH, CUT, RANDOM_NEXT, OTHER_DOCUMENT, OTHER_SENTENCE, TRUNCATE = 0, 1, 2, 3, 4, 5, 6

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: Config, purpose: str) -> None:
        self.store, self.config, self.purpose = store, config, purpose
        self.length = config.data.max_length
        self.pairs = config.objective.next_sentence
        self.cls, self.sep, self.mask, self.pad = (
            tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id
        )  # fmt: skip
        self.room = self.length - (3 if self.pairs else 2)
        self.num_masked = num_masked(self.length, config.objective.mask_rate)
        self.ordinary_ids = np.setdiff1d(np.arange(tokenizer.size), tokenizer.special_ids).astype(np.int32)
        self.chunks = group_sentences(store, self.room)
        self.num_examples = len(self.chunks)

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """tokens, types, segments [B, L] int32; mask_positions, targets [B, M] int32; weights [B, M] float32;
        next_sentence [B] int32 (1 = random) and row_weights [B] float32."""
        keys_B = example_keys(self.config.seed, f"{self.purpose}/masked_lm", epoch_B, np.maximum(index_B, 0))
        rows = len(index_B)
        tokens_BL = np.full((rows, self.length), self.pad, np.int32)
        types_BL, segments_BL = np.zeros_like(tokens_BL), np.zeros_like(tokens_BL)
        maskable_BL = np.zeros(tokens_BL.shape, bool)
        next_B = np.zeros(rows, np.int32)
        draws = uniform(keys_B, self.TRUNCATE)
        for row in np.flatnonzero(index_B >= 0):
            first, second, is_random = self._segments(self.chunks[index_B[row]], draws[row], keys_B[row : row + 1])
            end_a = 2 + len(first)
            end = end_a + (len(second) + 1 if self.pairs else 0)
            tokens_BL[row, 0] = self.cls
            tokens_BL[row, 1 : end_a - 1], tokens_BL[row, end_a - 1] = first, self.sep
            maskable_BL[row, 1 : end_a - 1] = True
            if self.pairs:
                tokens_BL[row, end_a : end - 1], tokens_BL[row, end - 1] = second, self.sep
                types_BL[row, end_a:end], maskable_BL[row, end_a : end - 1] = 1, True
            segments_BL[row, :end], next_B[row] = 1, is_random
        batch = {"types_BL": types_BL, "segments_BL": segments_BL}
        batch |= self._masked(tokens_BL, maskable_BL, segments_BL.sum(1), keys_B)
        return batch | {"next_sentence_B": next_B, "row_weights_B": (index_B >= 0).astype(np.float32)}

    def _segments(self, chunk: np.ndarray, draws: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Tokens of A and B, and whether B was drawn at random."""
        document, start, stop = (int(x) for x in chunk)
        room = self.room
        if draws[self.SHORT] < self.config.objective.short_rate:
            room = 2 + int(draws[self.SHORT_LENGTH] * (self.room - 1))
            stop = self._reach(start, stop, room)
        if not self.pairs:
            return self._tokens(start, stop)[:room], np.zeros(0, np.int32), False
        is_random = bool(stop - start == 1 or draws[self.RANDOM_NEXT] < 0.5)
        cut = start + 1 + int(draws[self.CUT] * (stop - start - 1)) if stop - start > 1 else stop
        first = self._tokens(start, cut)
        if is_random:
            second = self._other(document, draws, max(1, room - len(first)))
        else:
            second = self._tokens(cut, stop)
        return *self._truncate(first, second, room, key), is_random

    def _other(self, document: int, draws: np.ndarray, wanted: int) -> np.ndarray:
        """Whole sentences of at least `wanted` tokens, if there are so many, from a random one of another document.

        Whole, so that a random B is cut to size in the same way as a true one and its end does not give it away.
        """
        other = int(draws[self.OTHER_DOCUMENT] * (self.store.num_documents - 1))
        other += other >= document and self.store.num_documents > 1  # a lone document has to stand for the others
        first, end = (int(x) for x in self.store.document_starts[other : other + 2])
        start = first + int(draws[self.OTHER_SENTENCE] * (end - first))
        return self._tokens(start, self._reach(start, end, wanted))

    def _reach(self, start: int, end: int, wanted: int) -> int:
        """The first sentence boundary after `start` with at least `wanted` tokens before it, or `end`."""
        starts = self.store.sentence_starts[start : end + 1]
        return min(end, start + max(1, int(np.searchsorted(starts, starts[0] + wanted, side="left"))))

    def _tokens(self, start: int, stop: int) -> np.ndarray:
        from_token, to_token = self.store.sentence_starts[start], self.store.sentence_starts[stop]
        return np.asarray(self.store.tokens[from_token:to_token], np.int32)

    def _truncate(self, first: np.ndarray, second: np.ndarray, room: int, key: np.ndarray) -> list[np.ndarray]:
        """Shortens the longer segment token by token until both fit, from its front or back at random."""
        excess = len(first) + len(second) - room
        if excess <= 0:
            return [first, second]
        # What the paper's loop ends with: the longer one gives until both are level, then they take turns, B first.
        from_first = min(excess, max(0, len(first) - len(second)))
        from_second = min(excess, max(0, len(second) - len(first)))
        level = excess - from_first - from_second
        from_first, from_second = from_first + level // 2, from_second + (level + 1) // 2
        from_front = uniform(key, excess, self.TRUNCATE)[0] < 0.5
        fronts = int(from_front[:from_first].sum()), int(from_front[from_first:].sum())
        return [
            segment[front : len(segment) - (dropped - front)]
            for segment, dropped, front in zip((first, second), (from_first, from_second), fronts, strict=True)
        ]

    def _masked(
        self, tokens_BL: np.ndarray, maskable_BL: np.ndarray, lengths_B: np.ndarray, keys_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Chooses positions and corrupts them: 80% [MASK], 10% a random token, 10% unchanged."""
        num_masked, start = self.num_masked, self.TRUNCATE + 2 * self.length
        order_BL = np.where(maskable_BL, uniform(keys_B, self.length, start), 2.0)
        wanted_B = np.clip(np.round(lengths_B * self.config.objective.mask_rate), 1, num_masked).astype(np.int64)
        wanted_B = np.minimum(wanted_B, maskable_BL.sum(1))
        chosen_BM = np.argpartition(order_BL, num_masked - 1, axis=1)[:, :num_masked]
        by_order = np.argsort(np.take_along_axis(order_BL, chosen_BM, 1), axis=1, kind="stable")
        chosen_BM = np.take_along_axis(chosen_BM, by_order, 1)
        real_BM = np.arange(num_masked) < wanted_B[:, None]
        # Real positions first, in the order of the text; the rest points at [CLS] with weight 0.
        chosen_BM = np.sort(np.where(real_BM, chosen_BM, self.length), axis=1)
        chosen_BM = np.where(real_BM, chosen_BM, 0)
        targets_BM = np.where(real_BM, np.take_along_axis(tokens_BL, chosen_BM, 1), 0)
        kind_BM = uniform(keys_B, num_masked, start + self.length)
        pick_BM = uniform(keys_B, num_masked, start + self.length + num_masked)
        random_BM = self.ordinary_ids[(pick_BM * len(self.ordinary_ids)).astype(np.int64)]
        replaced_BM = np.where(kind_BM < 0.8, self.mask, np.where(kind_BM < 0.9, random_BM, targets_BM))
        row_BM, column_BM = np.nonzero(real_BM)
        tokens_BL[row_BM, chosen_BM[row_BM, column_BM]] = replaced_BM[row_BM, column_BM]
        return {
            "tokens_BL": tokens_BL,
            "mask_positions_BM": chosen_BM.astype(np.int32),
            "targets_BM": targets_BM.astype(np.int32),
            "weights_BM": real_BM.astype(np.float32),
        }


def num_masked(length: int, rate: float) -> int:
    """M, the fixed number of masked positions a row has room for: 20 of 128 and 77 of 512 at 15%, as in the paper."""
    return max(1, math.ceil(length * rate))


class MaskedLanguageModel(Objective):
    """Mean negative log-likelihood of masked tokens, plus that of the next-sentence label."""

    causal = False
    total_names = ("tokens", "real", "rows")
    token_term = "mlm_loss_nats"

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.metrics = {"mlm_loss_nats": "tokens", "mlm_accuracy": "tokens"}
        self.loss_terms = ("mlm_loss_nats",)
        if config.objective.next_sentence:
            self.metrics |= {"nsp_loss_nats": "rows", "nsp_accuracy": "rows"}
            self.loss_terms += ("nsp_loss_nats",)

    def examples(self, store: TokenStore, purpose: str) -> MaskedPairs:
        return MaskedPairs(store, self.tokenizer, self.config, purpose)

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        real = (batch["segments_BL"] > 0).sum().astype(jnp.float32)
        return {"tokens": batch["weights_BM"].sum(), "real": real, "rows": batch["row_weights_B"].sum()}

    def sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        x_BLD = model.encoder(
            batch["tokens_BL"], batch["segments_BL"], types_BL=batch["types_BL"], dropout_key=key
        )  # fmt: skip
        projection = model.predict_tokens(x_BLD, batch["mask_positions_BM"])
        loss, correct = token_loss(projection, batch["targets_BM"], batch["weights_BM"])
        sums = {"mlm_loss_nats": loss, "mlm_accuracy": correct}
        if self.config.objective.next_sentence:
            logits_B2 = model.predict_next_sentence(x_BLD)
            log_probabilities_B2 = jax.nn.log_softmax(logits_B2)
            labels_B, weights_B = batch["next_sentence_B"], batch["row_weights_B"]
            chosen_B = jnp.take_along_axis(log_probabilities_B2, labels_B[:, None], axis=1)[:, 0]
            sums["nsp_loss_nats"] = -(weights_B * chosen_B).sum()
            sums["nsp_accuracy"] = (weights_B * (logits_B2.argmax(-1) == labels_B)).sum()
        return sums

    def predicted(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch["targets_BM"], batch["weights_BM"]

    @property
    def predicted_share(self) -> float:
        length = self.config.data.max_length
        return num_masked(length, self.config.objective.mask_rate) / length
