"""Output files of a fine-tuning run: predictions record by record, and the model in the Hugging Face format."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lm_research.common.disk import atomic_file, errno_of
from lm_research.common.documents import parse_json
from lm_research.errors import PretrainedError
from lm_research.interop import huggingface, native_checkpoint
from lm_research.models.definition import ModelDefinition, Params
from lm_research.tasks.base import Task, drop_padding
from lm_research.tokenizers.base import write_files


def predictions(task: Task, part: str, outputs: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Yield a prediction for each record of a held-out part, in order, with the record's number, place and text.

    Single-label classification adds all logits; grouped records add their group.
    """
    exact = (row for output in outputs if task.exact for row in drop_padding(output, "logits"))
    path = task.corpus.record_files[part]
    with path.open("rb") as lines:
        for number, (line, prediction) in enumerate(zip(lines, task.predictions(outputs), strict=True)):
            row = {"record": number, **parse_json(line, f"{path}, line {number + 1}"), **prediction}
            if task.grouped:
                metadata = dict(task.corpus.metadata[part][number])
                row |= {"together": metadata.pop("group"), **metadata}
            if (logits_C := next(exact, None)) is not None:
                row["logits"] = [float(f"{x:.9g}") for x in logits_C]  # float32 to the bit
            yield row


def write_predictions(path: pathlib.Path, task: Task, part: str, outputs: list[dict[str, np.ndarray]]) -> None:
    """Write the predictions as JSON, one object a line."""
    with atomic_file(path) as file:
        for row in predictions(task, part, outputs):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def export(
    directory: pathlib.Path,
    definition: ModelDefinition,
    family: str,
    params: Params,
    config: Mapping[str, Any] | None,
    task: Task,
    plugins: Iterable[str] = (),
) -> None:
    """Write the model and its tokenizer in the Hugging Face format, or natively if that format has no class for the model.

    `plugins` are the modules that the run's config names, one of which may define the family.
    """
    directory.mkdir(parents=True, exist_ok=True)
    task.write_files(directory, definition.arch)
    tokens = native_checkpoint.tokens_of(task.tokenizer, definition.arch, definition.head.name)
    config = task.update_hf_config(native_checkpoint.describe(definition, family, config, tokens)["config"])
    try:
        huggingface.save(directory, definition, family, jax.device_get(params), config)
    except PretrainedError as error:
        if errno_of(error) is not None:  # an error of the file system, such as a full disk, would repeat
            raise
        native_checkpoint.save(directory, definition, family, params, config, plugins=plugins)
    tokenizer = native_checkpoint.tokenizer_of(task.tokenizer, definition.arch, definition.head.name)
    write_files({**tokenizer.files, **task.files(definition.arch)}, directory)
