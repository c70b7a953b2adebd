"""Runs a suite: what is finished is not run again, batch by batch, so a killed evaluation goes on and ends as an undisturbed one.

The output holds `made_from.json` (what it is of), a folder for each task with `predictions.jsonl` (of several models
`predictions_1.jsonl`, ...) and `task.json`, and at the end `results.json`, `results.md` and `index.html`. Outputs of batches wait in
`TASK/partial_K/` until the predictions of all are written.
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

from lm_research.common.disk import atomic_file, reporting_disk_errors, write_atomically
from lm_research.common.documents import Object, Size, check, read_json
from lm_research.common.rounding import round_up
from lm_research.config import MeshConfig, resolve
from lm_research.errors import DataError, UserError, not_downloaded
from lm_research.evaluation.language_modeling import LanguageModelPredictor
from lm_research.evaluation.minimal_pairs import MinimalPairPredictor
from lm_research.evaluation.suite import Entry
from lm_research.evaluation.task_predictor import TaskPredictor
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import batch_shards
from lm_research.run.run_directory import lock
from lm_research.tasks.base import TASKS
from lm_research.tasks.records import fingerprint

AGAIN = "Restore it, or evaluate again into another --output."
_SAVE_SECONDS = 10.0  # of work that a kill may cost


class Predictor(Protocol):
    """One model on one task; made by Judge(entry, path, workdir, batch_size, dtype, mesh)."""

    labels: tuple[str, ...]
    num_batches: int

    def batch(self, number: int) -> dict[str, Any]:
        """Arrays that say all about a batch of records; a pure function of its number."""
        ...

    def rows(self, outputs: list[dict[str, np.ndarray]]) -> Any:
        """The predictions, one a record, from the arrays of all batches."""
        ...


KINDS: dict[str, Callable[..., Predictor]] = {
    **dict.fromkeys(TASKS, TaskPredictor),
    "minimal_pairs": MinimalPairPredictor,
    "language_modeling": LanguageModelPredictor,
}


@dataclasses.dataclass(frozen=True)
class EvalJob:
    """An evaluation: tasks, models (of one kind, such as seeds), where it goes, and how it is run."""

    entries: Sequence[Entry]
    models: Sequence[str]
    output: pathlib.Path
    batch_size: int = 32
    dtype: str | None = None

    def predictions(self, entry: Entry, number: int) -> pathlib.Path:
        """The file of a task's predictions by one of the models."""
        mark = f"_{number + 1}" if len(self.models) > 1 else ""
        return self.output / entry.name / f"predictions{mark}.jsonl"


def run(plan: EvalJob, log: Callable[[str], None]) -> None:
    """Makes all predictions that are not there yet.

    Raises:
      UserError: a model or records that do not fit, or an output that is of another evaluation or in use.
    """

    def kept() -> str:
        return "The predictions that are written are kept."

    with reporting_disk_errors(kept, plan.output), lock(plan.output, "--output"):
        _check(plan)
        mesh = make_mesh(MeshConfig())
        # float32 is not the shortened products that TPUs and GPUs make of it by default
        precision = "float32" if plan.dtype in (None, "float32") else "default"
        with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
            for entry in plan.entries:
                for number, model in enumerate(plan.models):
                    path = plan.predictions(entry, number)
                    if path.exists():
                        log(f"{entry.name}: {path} is there already")
                        continue
                    _judge(plan, entry, model.replace("{task}", entry.name), path, mesh)
                    log(f"{entry.name}: {path}")
        shutil.rmtree(plan.output / "data", ignore_errors=True)


def _judge(plan: EvalJob, entry: Entry, model: str, path: pathlib.Path, mesh: Any) -> None:
    size = round_up(plan.batch_size, batch_shards(mesh.shape))
    judge = KINDS[entry.task](entry, pathlib.Path(model), plan.output, size, plan.dtype, mesh)
    partial = path.with_name("partial" + path.stem.removeprefix("predictions"))
    partial.mkdir(parents=True, exist_ok=True)
    done = sorted(partial.glob("*.npz"))
    outputs = [output for file in done for output in _unpacked(file)]
    pending: list[dict[str, Any]] = []
    saved = time.monotonic()
    with tqdm.tqdm(total=judge.num_batches, initial=len(outputs), unit="batch", disable=not sys.stderr.isatty()) as bar:
        for number in range(len(outputs), judge.num_batches):
            pending.append(judge.batch(number))
            bar.update()
            if time.monotonic() - saved > _SAVE_SECONDS or number + 1 == judge.num_batches:
                fresh = jax.device_get(pending)
                _pack(partial / f"{number:08d}.npz", fresh)
                outputs, pending, saved = outputs + fresh, [], time.monotonic()
    facts = {"labels": list(judge.labels)}
    labels = path.with_name("task.json")
    if labels.exists() and read_json(labels, fix=AGAIN) != facts:
        raise UserError(
            f"Task {entry.name}: {model} has other classes, or in another order, than the models before it. Evaluate it apart."
        )
    write_atomically(labels, json.dumps(facts, ensure_ascii=False) + "\n")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in judge.rows(outputs))
    write_atomically(path, "".join(lines))
    shutil.rmtree(partial)


def _pack(path: pathlib.Path, outputs: list[dict[str, np.ndarray]]) -> None:
    with atomic_file(path) as file:
        arrays: dict[str, Any] = {f"{i}/{name}": x for i, output in enumerate(outputs) for name, x in output.items()}
        np.savez(file, **arrays)


def _unpacked(path: pathlib.Path) -> list[dict[str, np.ndarray]]:
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]


def _check(plan: EvalJob) -> None:
    """Notes what the output is made from, and clears what was begun, but not finished, from what has changed since.

    Raises:
      UserError: it has predictions made by other models or options, or from other files.
    """
    data = resolve({}).data
    made_from = {
        "models": [str(model) for model in plan.models],
        "files": {model: _files(model) for entry in plan.entries for model in _paths(plan, entry)},
        "tasks": [dataclasses.asdict(entry) for entry in plan.entries],
        "data": {entry.data: fingerprint(entry.data, data) for entry in plan.entries},
        "batch_size": plan.batch_size,
        "dtype": plan.dtype,
    }
    made_from, path = json.loads(json.dumps(made_from)), plan.output / "made_from.json"
    if path.exists():
        before = read_made_from(path)
        for name in sorted({task["name"] for task in before["tasks"]}):
            now, then = _made_from(made_from, name), _made_from(before, name)
            changed = [what for what in then if now.get(what) != then[what]]
            if changed and any((plan.output / name).glob("predictions*.jsonl")):
                raise UserError(
                    f"{plan.output} has predictions of task {name}, made with other {' and '.join(changed)}: see {path}. Give another --output, "
                    "or delete it."
                )
            if changed:
                shutil.rmtree(plan.output / name, ignore_errors=True)
    elif any(path for path in plan.output.iterdir() if path.name != ".lock"):
        raise UserError(f"{plan.output} holds files that are of no evaluation. Give another --output.")
    write_atomically(path, json.dumps(made_from, indent=1, ensure_ascii=False) + "\n")


class MadeFrom(TypedDict):
    """made_from.json."""

    models: Annotated[list[str], Meta(min_length=1)]
    files: Object
    tasks: Annotated[list[Object], Meta(min_length=1)]
    data: Object
    batch_size: Size
    dtype: str | None


def read_made_from(path: pathlib.Path) -> MadeFrom:
    """What an output is made from; raises a DataError if the file is damaged."""
    content = read_json(path, MadeFrom, fix=AGAIN)
    for task in content["tasks"]:
        check(task, Entry, f"{path}: a task", fix=AGAIN)
    return content


def _made_from(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the predictions of one task depend on, of the content of made_from.json; {} if the task is not in it."""
    for task in content["tasks"]:
        if task["name"] == name:
            models = [model.replace("{task}", name) for model in content["models"]]
            files = {model: content["files"].get(model) for model in models}
            common = {key: content[key] for key in ("models", "batch_size", "dtype")}
            return common | {"files": files, "task": task, "data": content["data"].get(task["data"])}
    return {}


def _paths(plan: EvalJob, entry: Entry) -> list[str]:
    return [model.replace("{task}", entry.name) for model in plan.models]


def _files(model: str) -> list[Any]:
    """Names, sizes and times of a model's files, which tell whether it has changed."""
    path = pathlib.Path(model)
    if not path.is_dir():
        raise DataError(
            f"--model={model} is no directory. Give that of a fine-tuned run, or of a model.{not_downloaded(model)}"
        )
    found = sorted(file for pattern in ("*", "model/*", "checkpoints/*", "params/*") for file in path.glob(pattern))
    kept = [file for file in found if file.suffix in (".safetensors", ".bin", ".msgpack", ".json") or file.is_dir()]
    return [
        [str(file.relative_to(path)), file.stat().st_size if file.is_file() else 0, file.stat().st_mtime_ns]
        for file in kept
    ]
