"""Sample predictions of a model in training, as text: filled masks or generated continuations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lm_research.config import Config
from lm_research.data.corpus import Corpus
from lm_research.decoding.fill_mask import MaskFiller, find_gaps
from lm_research.decoding.sample import Sampler
from lm_research.models.definition import ModelDefinition

SAMPLE_LENGTH = 64
PROMPT_TOKENS = 4


def make_preview(config: Config, definition: ModelDefinition, corpus: Corpus) -> Callable[[Any, int], list[str]]:
    """Make a function (params, step) -> `eval.num_samples` lines of text, for the same held-out documents each time.

    Models that neither fill masks nor continue texts (encoder-decoders, discriminators) have no preview.
    """
    count, length = config.eval.num_samples, config.data.max_length
    if definition.head.name not in ("masked_lm", "pretraining", "causal_lm"):
        return lambda params, step: []
    if not definition.arch.causal:
        fill = MaskFiller(definition, corpus.tokenizer, length)
        gaps = find_gaps(corpus.validation, corpus.tokenizer, count, length)
        return lambda params, step: fill(params, gaps)
    sampler = Sampler(definition, corpus.tokenizer, min(length, SAMPLE_LENGTH))
    documents = np.linspace(0, corpus.validation.num_documents, count, endpoint=False).astype(int)
    openings = [corpus.validation.document_tokens(int(i))[:PROMPT_TOKENS].tolist() for i in documents]
    prompts = [corpus.tokenizer.decode(tokens) for tokens in openings]
    return lambda params, step: sampler(params, prompts, seed=config.seed + step)
