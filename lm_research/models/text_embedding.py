"""Settings of text embeddings: how the final states of a text's tokens become its vector, for similarity and search."""

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
    """A dense layer on pooled vectors: kernel [in, out], bias [out] or None, and one of ACTIVATIONS.

    `residual` [in, out] multiplies the input and is added to the output; None for no residual.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    activation: str
    residual: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Settings of a model's text embeddings, those of sentence-transformers.

    Attributes:
      pooling: one of forward.POOLINGS, or several joined by +, whose vectors are concatenated; or the name of an unsupported one.
      normalize: whether vectors are scaled to length 1.
      max_length: number of tokens that texts are truncated to; 0 is the tokenizer's limit, or the model's number of positions.
      further: kinds of unsupported modules that follow.
      include_prompt: whether the prompt's tokens are pooled with those of the text.
      prompts: name -> prompt that is prepended to texts.
      default_prompt_name: name of the prompt if none is given; None for no prompt.
      similarity: similarity of two vectors, one of SIMILARITIES.
      truncate_dim: number of leading elements of a vector that are kept; 0 is all.
      dense: layers between pooling and normalization.
      files: name -> content of the files that these settings were read from.
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
        """The names in `pooling`."""
        return self.pooling.split("+")

    @property
    def supported(self) -> bool:
        """Whether these embeddings can be computed."""
        return set(self.poolings) <= set(POOLINGS) and not self.further

    def check(self) -> None:
        """Raise a UserError unless these embeddings are supported."""
        if self.further:
            raise UserError(
                f"This model's modules.json has a {self.further[0]} after the pooling, which is not supported. Pass pooling to lm.embed to "
                "get the vectors before that module."
            )
        for name in self.poolings:
            if name not in POOLINGS:
                raise UserError(
                    f"pooling is {name!r}; it must be {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}, or several of these joined by +."
                )

    def prompt(self, name: str | None = None) -> str:
        """The prompt with this name; for None the default one, or "" if there is no default.

        Raises:
          UserError: no prompt has this name.
        """
        name = self.default_prompt_name if name is None else name
        prompts = {"query": "", "document": "", **self.prompts}  # two that every model of sentence-transformers has
        if name is not None and name not in prompts:
            raise UserError(
                f"The model has no prompt named {name!r} in {CONFIG}; it has: {', '.join(prompts)}. Choose one of these, or pass the "
                "text itself as prompt."
            )
        return "" if name is None else prompts[name]
