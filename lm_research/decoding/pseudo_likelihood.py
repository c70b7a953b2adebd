"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al. 2020, "Masked Language Model Scoring").

It is the sum of the log-probabilities of all tokens, each predicted from all others while it is masked.

Legend: B rows of one program, L length.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.common.rounding import bucket_size
from lm_research.errors import UserError
from lm_research.tokenizers.run_tokenizer import with_special_tokens

HEADS = ("masked_lm", "pretraining")


class Sentence(NamedTuple):
    """Token ids with the family's special tokens, and the positions of the tokens to score."""

    ids: list[int]
    places: list[int]


class PseudoLikelihood:
    """Scores sentences with a masked language model.

    Attributes:
      rows: batch size, in copies of sentences with one masked token each.
    """

    def __init__(self, lm: Any, rows: int = 32) -> None:
        """Raise a UserError if the model has another head, or no tokenizer with a mask token."""
        if lm.head not in HEADS:
            raise UserError(
                f"Pseudo-log-likelihood needs a masked language model, but this one has head {lm.head!r}. Load it with "
                "head='masked_lm'."
            )
        if lm.tokenizer is None or "mask" not in lm.tokenizer.roles:
            raise UserError("Pseudo-log-likelihood needs a tokenizer with a mask token, which this model lacks.")
        self.lm, self.rows, self.tokenizer = lm, rows, with_special_tokens(lm.tokenizer)
        arch = lm.definition.arch
        self.longest = arch.max_length if arch.positions == "learned" else 0

        def run(
            params: Any, tokens_BL: jax.Array, segments_BL: jax.Array, places_B: jax.Array, hidden_B: jax.Array
        ) -> Any:
            model = lm.definition.bind(params)
            x_BLD = model.reader(tokens_BL, segments_BL)
            log_BV = jax.nn.log_softmax(model.predict_tokens(x_BLD, places_B[:, None]).logits()[:, 0])
            return jnp.take_along_axis(log_BV, hidden_B[:, None], axis=1)[:, 0], log_BV.argmax(1) == hidden_B

        self._run = jax.jit(run)

    def encode(self, texts: Sequence[str], starts: Sequence[int] | None = None) -> list[Sentence]:
        """Encode texts as sentences.

        Args:
          texts: the texts.
          starts: for each text, the character from which on its tokens are scored; None scores all.

        Raises:
          UserError: a text has no token to score, or more tokens than the model has positions.
        """
        found = []
        encodings = self.tokenizer.encodings(texts)
        for text, start, encoded in zip(texts, starts or [0] * len(texts), encodings, strict=True):
            tokens = zip(encoded.special_tokens_mask, encoded.offsets, strict=True)
            places = [
                place for place, (special, (_, end)) in enumerate(tokens) if not special and (end > start or not start)
            ]
            if not places or self.longest and len(encoded.ids) > self.longest:
                raise UserError(
                    f"{text[:80]!r} has {len(encoded.ids)} tokens, special ones included; at least one must be ordinary text, and the model "
                    f"has positions for {self.longest or 'any number'}."
                )
            found.append(Sentence(list(encoded.ids), places))
        return found

    def __call__(self, sentences: Sequence[Sentence]) -> list[np.ndarray]:
        """Log-probability [nats] of the token at each scored position of each sentence, given all other tokens."""
        return [log for log, _ in self.evaluate(sentences)]

    def evaluate(self, sentences: Sequence[Sentence]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Log-probabilities as `__call__`, and whether each token is the most likely one at its position."""
        copies = [(number, place) for number, sentence in enumerate(sentences) for place in sentence.places]
        if not copies:
            return []
        mask, pad, values = self.tokenizer.roles["mask"], self.tokenizer.roles.get("pad", 0), []
        width = bucket_size(max(len(sentence.ids) for sentence in sentences), 16)
        width = min(width, self.longest) if self.longest else width
        for start in range(0, len(copies), self.rows):
            part = copies[start : start + self.rows]
            tokens_BL = np.full((self.rows, width), pad, np.int32)
            segments_BL = np.zeros_like(tokens_BL)
            segments_BL[:, 0] = 1  # padding rows attend to one token
            places_B, hidden_B = np.zeros((2, self.rows), np.int32)
            for row, (number, place) in enumerate(part):
                ids = sentences[number].ids
                tokens_BL[row, : len(ids)], segments_BL[row, : len(ids)] = ids, 1
                places_B[row], hidden_B[row], tokens_BL[row, place] = place, ids[place], mask
            outputs = self._run(self.lm.params, tokens_BL, segments_BL, places_B, hidden_B)
            values.append([np.asarray(x)[: len(part)] for x in outputs])
        ends = np.cumsum([len(sentence.places) for sentence in sentences])[:-1]
        log, best = (np.split(np.concatenate(x), ends) for x in zip(*values, strict=True))
        return list(zip(log, best, strict=True))


def common_tokens(a: Sentence, b: Sentence) -> tuple[Sentence, Sentence]:
    """Restrict both sentences to the positions of the tokens that they have in common, as CrowS-Pairs does (Nangia et al. 2020)."""
    kept_a: set[int] = set()
    kept_b: set[int] = set()
    matcher = difflib.SequenceMatcher(None, list(map(str, a.ids)), list(map(str, b.ids)))
    for kind, first_a, end_a, first_b, end_b in matcher.get_opcodes():
        if kind == "equal":
            kept_a |= set(range(first_a, end_a))
            kept_b |= set(range(first_b, end_b))
    own = [place for place in a.places if place in kept_a]
    return Sentence(a.ids, own), Sentence(b.ids, [place for place in b.places if place in kept_b])
