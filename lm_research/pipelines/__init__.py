"""`pipeline(task, model=...)` runs a model on a task, with the inputs and outputs of Hugging Face's pipelines."""

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


def find_pipeline_class(task: str) -> type[Pipeline]:
    """Return the Pipeline class of a task or alias; raise a UserError if the task does not exist."""
    name = ALIASES.get(task, task)
    name = "translation" if name.startswith("translation_") else name
    if name not in PIPELINES:
        raise UserError(f"There is no task {task!r}. {suggest(task, [*PIPELINES, *ALIASES])}")
    return PIPELINES[name]


def pipeline(task: str, model: str | os.PathLike[str] | LanguageModel, **options: Any) -> Pipeline:
    """Build a callable that runs a model on a task, with the inputs and outputs of Hugging Face's pipelines.

        classify = lm_research.pipeline("text-classification", model="runs/sst2")
        classify("A good film.")  # [{"label": "positive", "score": 0.99}]
        fill = lm_research.pipeline("fill-mask", model="bert-base-uncased", top_k=3)
        fill("Paris is the [MASK] of France.")

    Args:
      task: a key of PIPELINES ("text-generation", "question-answering", ...), "sentiment-analysis", "ner", or
        "translation_XX_to_YY".
      model: a directory (see `lm_research.from_pretrained`), or a LanguageModel.
      **options: `batch_size` (default 8); `dtype` and `mesh`, which are passed to `from_pretrained`; and defaults for the
        options of the task, which each call may override.

    Returns:
      A Pipeline: call it with a text (or the task's other input), a list of them or a generator. Its class describes the
      inputs, options and outputs of the task.

    Raises:
      UserError: the task or an option does not exist, or the model's head does not fit the task.
    """
    kind = find_pipeline_class(task)
    loading = {name: options.pop(name) for name in ("dtype", "mesh") if name in options}
    kind.check_options(task, options)  # before the model is read, which may take long
    if not isinstance(model, LanguageModel):
        model = from_pretrained(model, head="none" if kind.heads == ("none",) else None, **loading)
    return kind(task, model, **options)
