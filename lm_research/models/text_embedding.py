"""From the final states of a text's tokens to its vector: what a model for similarity or search says of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lm_research.errors import UserError
from lm_research.models.forward import POOLINGS

CONFIG = "config_sentence_transformers.json"
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


class Dense(NamedTuple):
    """A layer on pooled vectors: its kernel [in, out], bias [out] or None, and the name of what follows, of ACTIVATIONS.

    `residual` is what its input is multiplied by and added [in, out]; None without.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    activation: str
    residual: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What is done to a text and to the final states of its tokens.

    Attributes:
      pooling: one of forward.POOLINGS, several with + between them, whose vectors are joined, or the name of one that is not supported.
      normalize: whether vectors have length 1.
      max_length: tokens that texts are cut to; 0 is what the tokenizer names, or the model has positions for.
      further: kinds of modules that follow and are not supported.
      include_prompt: whether the tokens of what is put before a text are pooled with its own.
      prompts: name -> text that is put before texts.
      default_prompt_name: of the prompt where none is asked for; None is none.
      similarity: of two vectors, one of SIMILARITIES.
      truncate_dim: how many numbers of a vector are kept, from the first; 0 is all.
      dense: layers between pooling and normalization.
      files: name -> content of the files that say all this, as they were found.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 0
    further: tuple[str, ...] = ()
    include_prompt: bool = True
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    truncate_dim: int = 0
    dense: tuple[Dense, ...] = dataclasses.field(default=(), compare=False, repr=False)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def dumps(self) -> bytes:
        """The content of `embedding.json`."""
        kept = (field.name for field in dataclasses.fields(self) if field.compare)
        return (json.dumps({name: getattr(self, name) for name in kept}) + "\n").encode()

    @property
    def poolings(self) -> list[str]:
        return self.pooling.split("+")

    @property
    def supported(self) -> bool:
        return set(self.poolings) <= set(POOLINGS) and not self.further

    def check(self) -> None:
        """Raises a UserError if embeddings of this kind cannot be computed."""
        if self.further:
            raise UserError(
                f"This model's modules.json has a {self.further[0]} after the pooling, which is not supported. Give lm.embed a "
                "pooling to have the vectors before it."
            )
        for name in self.poolings:
            if name not in POOLINGS:
                raise UserError(
                    f"pooling is {name!r}; it is {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}, or several with + between them."
                )

    def prompt(self, name: str | None = None) -> str:
        """The text that is put before texts: the named one or, for None, the usual one, which may be none at all.

        Raises:
          UserError: there is none of that name.
        """
        name = self.default_prompt_name if name is None else name
        known = {"query": "", "document": "", **self.prompts}  # the two that every model of sentence-transformers has
        if name is not None and name not in known:
            raise UserError(
                f"The model has no prompt {name!r} ({CONFIG} is where prompts are named); it has: {', '.join(known)}. Name one of "
                "these, or give the text itself as prompt."
            )
        return "" if name is None else known[name]
