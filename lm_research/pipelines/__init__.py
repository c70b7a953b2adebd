"""`pipeline(task, model=...)`: a model put to a task, with inputs and outputs as Hugging Face's pipelines had them."""

from __future__ import annotations

import os
from typing import Any

from lm_research.errors import UserError, suggest
from lm_research.pipelines.base import Pipeline
from lm_research.pipelines.classification import (
    FeatureExtraction,
    FillMask,
    SentenceSimilarity,
    TextClassification,
    ZeroShotClassification,
)
from lm_research.pipelines.extraction import QuestionAnswering, TokenClassification
from lm_research.pipelines.generation import Conversational, Summarization, TextGeneration, TextToText, Translation
from lm_research.pretrained import LanguageModel, from_pretrained

PIPELINES: dict[str, type[Pipeline]] = {
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
    "text2text-generation": TextToText,
    "summarization": Summarization,
    "translation": Translation,
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "zero-shot-classification": ZeroShotClassification,
    "feature-extraction": FeatureExtraction,
    "sentence-similarity": SentenceSimilarity,
    "conversational": Conversational,
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def find(task: str) -> type[Pipeline]:
    """The class of a task; raises a UserError if there is none of that name."""
    name = ALIASES.get(task, task)
    name = "translation" if name.startswith("translation_") else name
    if name not in PIPELINES:
        raise UserError(f"There is no task {task!r}. {suggest(task, [*PIPELINES, *ALIASES])}")
    return PIPELINES[name]


def pipeline(task: str, model: str | os.PathLike[str] | LanguageModel, **options: Any) -> Pipeline:
    """A model put to a task.

    Args:
      task: a name of PIPELINES, "sentiment-analysis", "ner", or "translation_XX_to_YY".
      model: a directory (see from_pretrained), or a model.
      options: `batch_size` (8), `dtype` and `mesh` of from_pretrained, and defaults for the task's own.

    Raises:
      UserError: no such task or option, or a model that cannot do it.
    """
    kind = find(task)
    loading = {name: options.pop(name) for name in ("dtype", "mesh") if name in options}
    kind.check(task, options)  # before the model is read, which may take long
    if not isinstance(model, LanguageModel):
        model = from_pretrained(model, head="none" if kind.heads == ("none",) else None, **loading)
    return kind(task, model, **options)
