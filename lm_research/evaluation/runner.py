"""Run a suite: finished batches are stored, so that a killed evaluation resumes and gives the same results.

The output directory contains `made_from.json` (models, data and options), a folder for each task with `predictions.jsonl`
(for several models `predictions_1.jsonl`, ...) and `task.json`, and at the end `results.json`, `results.md` and `index.html`.
`TASK/partial_K/` holds the outputs of batches until all predictions are written.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypedDict

import jax
import numpy as np
import tqdm
from msgspec import Meta

from lm_research.common import buckets
from lm_research.common.disk import atomic_file, reporting_disk_errors, write_atomically
from lm_research.common.documents import Object, Size, check, read_json
from lm_research.common.paths import as_path, is_remote
from lm_research.common.rounding import round_up
from lm_research.config import MeshConfig, resolve
from lm_research.errors import DataError, UserError, not_downloaded
from lm_research.evaluation.language_modeling import LanguageModelPredictor
from lm_research.evaluation.minimal_pairs import MinimalPairPredictor
from lm_research.evaluation.suite import Entry
from lm_research.evaluation.task_predictor import TaskPredictor
from lm_research.metrics import texts
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import batch_shards
from lm_research.run.run_directory import lock
from lm_research.tasks.base import TASKS
from lm_research.tasks.records import fingerprint

RERUN = "Restore it, or evaluate again with another --output."
_SAVE_SECONDS = 10.0  # maximum work that a kill loses


class Predictor(Protocol):
    """Runs one model on one task; built by Class(entry, path, workdir, batch_size, dtype, mesh).

    Attributes:
      labels: names of the classes in the model's order; () if the task has none.
      num_batches: number of batches of the whole task.
    """

    labels: tuple[str, ...]
    num_batches: int

    def batch(self, number: int) -> dict[str, Any]:
        """Return arrays from which `rows` makes the predictions of a batch; a pure function of its number."""
        ...

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Any:
        """Return the predictions, one per record, from the arrays of all batches."""
        ...


KINDS: dict[str, Callable[..., Predictor]] = {
    **dict.fromkeys(TASKS, TaskPredictor),
    "minimal_pairs": MinimalPairPredictor,
    "language_modeling": LanguageModelPredictor,
}


@dataclasses.dataclass(frozen=True)
class EvalJob:
    """What an evaluation runs.

    Attributes:
      entries: tasks.
      models: directories of models that differ in the seed only; "{task}" in them stands for a task's name.
      output: directory to write.
      batch_size: number of records that run together.
      dtype: type of parameters and computation; None is float32.
    """

    entries: Sequence[Entry]
    models: Sequence[str]
    output: pathlib.Path
    batch_size: int = 32
    dtype: str | None = None

    def predictions(self, entry: Entry, number: int) -> pathlib.Path:
        """Return the path of a task's predictions by model `number`."""
        suffix = f"_{number + 1}" if len(self.models) > 1 else ""
        return self.output / entry.name / f"predictions{suffix}.jsonl"


def run(job: EvalJob, log: Callable[[str], None]) -> None:
    """Write all predictions that do not exist yet.

    Args:
      job: what to run.
      log: receives a line for each file of predictions.

    Raises:
      UserError: a model and the records do not fit together, or the output directory is in use or contains another
        evaluation, or packages that score generated texts are missing.
    """

    def saved() -> str:
        return "The predictions written so far are kept."

    with reporting_disk_errors(saved, job.output), lock(job.output, "--output"):
        for entry in job.entries:
            if entry.task == "seq2seq":
                texts.check_installed(entry.more.get("bleu_tokenizer", "13a"))
        _check(job)
        mesh = make_mesh(MeshConfig())
        # TPUs and GPUs would multiply float32 values at a lower precision by default.
        precision = "float32" if job.dtype in (None, "float32") else "default"
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            for entry in job.entries:
                for number, model in enumerate(job.models):
                    path = job.predictions(entry, number)
                    if path.exists():
                        log(f"{entry.name}: {path} already exists")
                        continue
                    _predict(job, entry, model.replace("{task}", entry.name), path, mesh)
                    log(f"{entry.name}: {path}")
        shutil.rmtree(job.output / "data", ignore_errors=True)


def _predict(job: EvalJob, entry: Entry, model: str, path: pathlib.Path, mesh: Any) -> None:
    """Write the predictions of one model on one task, starting from the batches that are stored."""
    batch_size = round_up(job.batch_size, batch_shards(mesh.shape))
    predictor = KINDS[entry.task](entry, as_path(model), job.output, batch_size, job.dtype, mesh)
    partial = path.with_name("partial" + path.stem.removeprefix("predictions"))
    partial.mkdir(parents=True, exist_ok=True)
    outputs = [output for file in sorted(partial.glob("*.npz")) for output in _load_outputs(file)]
    pending: list[dict[str, Any]] = []
    saved = time.monotonic()
    total = predictor.num_batches
    with tqdm.tqdm(total=total, initial=len(outputs), unit="batch", disable=not sys.stderr.isatty()) as bar:
        for number in range(len(outputs), total):
            pending.append(predictor.batch(number))
            bar.update()
            if time.monotonic() - saved > _SAVE_SECONDS or number + 1 == total:
                fetched = jax.device_get(pending)
                _save_outputs(partial / f"{number:08d}.npz", fetched)
                outputs, pending, saved = outputs + fetched, [], time.monotonic()
    content = {"labels": list(predictor.labels)}
    labels = path.with_name("task.json")
    if labels.exists() and read_json(labels, fix=RERUN) != content:
        raise UserError(
            f"Task {entry.name}: the classes of {model}, or their order, differ from those of the models before it. Evaluate it "
            "separately."
        )
    write_atomically(labels, json.dumps(content, ensure_ascii=False) + "\n")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in predictor.rows(outputs))
    write_atomically(path, "".join(lines))
    shutil.rmtree(partial)


def _save_outputs(path: pathlib.Path, outputs: list[dict[str, np.ndarray]]) -> None:
    with atomic_file(path) as file:
        arrays: dict[str, Any] = {f"{i}/{name}": x for i, output in enumerate(outputs) for name, x in output.items()}
        np.savez(file, **arrays)


def _load_outputs(path: pathlib.Path) -> list[dict[str, np.ndarray]]:
    outputs: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            outputs.setdefault(int(number), {})[name] = arrays[key]
    return [outputs[number] for number in sorted(outputs)]


def _check(job: EvalJob) -> None:
    """Write made_from.json, and delete unfinished predictions of tasks whose models, data or options have changed.

    Raises:
      UserError: there are finished predictions made by other models, from other data or with other options.
    """
    data = resolve({}).data
    made_from = {
        "models": [str(model) for model in job.models],
        "files": {model: _files(model) for entry in job.entries for model in _paths(job, entry)},
        "tasks": [dataclasses.asdict(entry) for entry in job.entries],
        "data": {entry.data: fingerprint(entry.data, data) for entry in job.entries},
        "batch_size": job.batch_size,
        "dtype": job.dtype,
    }
    made_from, path = json.loads(json.dumps(made_from)), job.output / "made_from.json"
    if path.exists():
        before = read_made_from(path)
        for name in sorted({task["name"] for task in before["tasks"]}):
            now, then = _made_from(made_from, name), _made_from(before, name)
            changed = [key for key in then if now.get(key) != then[key]]
            if changed and any((job.output / name).glob("predictions*.jsonl")):
                raise UserError(
                    f"{job.output} has predictions of task {name}, made with other {' and '.join(changed)}: see {path}. Give another "
                    "--output, or delete this one."
                )
            if changed:
                shutil.rmtree(job.output / name, ignore_errors=True)
    elif any(path for path in job.output.iterdir() if path.name != ".lock"):
        raise UserError(f"{job.output} contains files that are not part of an evaluation. Give another --output.")
    write_atomically(path, json.dumps(made_from, indent=1, ensure_ascii=False) + "\n")


class MadeFrom(TypedDict):
    """Content of made_from.json."""

    models: Annotated[list[str], Meta(min_length=1)]
    files: Object
    tasks: Annotated[list[Object], Meta(min_length=1)]
    data: Object
    batch_size: Size
    dtype: str | None


def read_made_from(path: pathlib.Path) -> MadeFrom:
    """Read made_from.json; raise a DataError if the file is damaged."""
    content = read_json(path, MadeFrom, fix=RERUN)
    for task in content["tasks"]:
        check(task, Entry, f"{path}: a task", fix=RERUN)
    return content


def _made_from(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the part of made_from.json on which one task's predictions depend; {} if the task is not in it."""
    for task in content["tasks"]:
        if task["name"] == name:
            models = [model.replace("{task}", name) for model in content["models"]]
            files = {model: content["files"].get(model) for model in models}
            common = {key: content[key] for key in ("models", "batch_size", "dtype")}
            return common | {"files": files, "task": task, "data": content["data"].get(task["data"])}
    return {}


def _paths(job: EvalJob, entry: Entry) -> list[str]:
    return [model.replace("{task}", entry.name) for model in job.models]


def _files(model: str) -> list[Any]:
    """Return names, sizes and times of a model's files, to detect changes."""
    path = as_path(model)
    if not path.is_dir():
        raise DataError(
            f"--model={model} is not a directory. Give the directory of a fine-tuned run or of a model.{not_downloaded(model)}"
        )
    suffixes = (".safetensors", ".bin", ".msgpack", ".json")
    if is_remote(path):
        system, root = buckets.filesystem(path)
        return [
            [name.removeprefix(root), *buckets.stamp(one)]
            for name, one in system.find(root, detail=True).items()
            if name.endswith(suffixes) and "/.lock/" not in name
        ]
    files = sorted(file for pattern in ("*", "model/*", "checkpoints/*", "params/*") for file in path.glob(pattern))
    return [
        [str(file.relative_to(path)), file.stat().st_size if file.is_file() else 0, file.stat().st_mtime_ns]
        for file in files
        if file.suffix in suffixes or file.is_dir()
    ]
