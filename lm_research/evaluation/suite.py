"""A suite: tasks that a model is judged on, from a YAML, JSON or Python file, or one that comes with the library.

    tasks:
      - name: sentiment              # of its folder in the output
        task: classification         # a key of kinds.KINDS
        data: dev.jsonl              # a file of records, or tfds:NAME@SPLIT
        text_key: review             # the keys of config.task that say how records are read
        metric: accuracy             # the one that is reported first; left out, the task's usual one

A Python file has the same list as `TASKS`. Files are looked for beside the suite, then in the current directory.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import runpy
from collections.abc import Mapping
from importlib import resources
from typing import Any

from lm_research.common.documents import check, parse_yaml, read_json, read_yaml, short
from lm_research.common.paths import FILE, FOLDER, NOTHING, kind, path_of
from lm_research.config import loading, resolve
from lm_research.errors import ConfigError, suggest
from lm_research.tasks.base import TASKS

_SHIPPED = "suites"
_TFDS = "tfds:"
_LONGEST, _LONGEST_NAME = 2**24, 100  # tokens of a text; bytes of a task's name
# Of an entry and of config.task alike.
_TASK_KEYS = ("text_key", "pair_key", "label_key", "problem_type", "label_separator", "metric")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One task of a suite.

    Attributes:
      name: of its folder and its row in tables.
      task: a key of kinds.KINDS.
      data: records, as config.task.train takes them.
      metric: the one that is reported first; "" is the task's usual one.
      text_key, pair_key, label_key, problem_type, label_separator: as in config.task.
      labels: the model's classes in its order, in the words of the data; () takes the names that the model has for them.
      max_length: tokens that texts are cut to; 0 is what the model was trained with, or has positions for.
      good_key, bad_key: minimal pairs: fields of the acceptable and of the other sentence.
      slice_key: a field whose values are scored apart too, such as the phenomenon of a minimal pair; "" does none.
      scored: minimal pairs by masked models: "all" tokens, or those alone that both sentences share ("shared", as CrowS-Pairs).
      more: further keys of config.task, given in the suite like the others.
    """

    name: str
    task: str
    data: str
    metric: str = ""
    text_key: str = "text"
    pair_key: str = ""
    label_key: str = "label"
    problem_type: str = ""
    label_separator: str = ","
    labels: tuple[str, ...] = ()
    max_length: int = 0
    good_key: str = "sentence_good"
    bad_key: str = "sentence_bad"
    slice_key: str = ""
    scored: str = "all"
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


def load_suite(given: str, kinds: Mapping[str, Any]) -> list[Entry]:
    """The tasks of a suite, by its file or its name; raises a ConfigError that names file, task and key."""
    path = path_of(given, "--suite")
    shipped = {file.name.removesuffix(".yaml"): file for file in _folder().iterdir() if file.name.endswith(".yaml")}
    if kind(path) not in (NOTHING, FOLDER):
        content = _read(path)
    elif given in shipped:
        content = parse_yaml(shipped[given].read_text(encoding="utf-8"), given, error=ConfigError)
    else:
        hint = suggest(given, shipped)
        raise ConfigError(f"--suite={given} is neither a file nor a suite that comes with the library. {hint}")
    entries = [_entry(fields, number, given, kinds) for number, fields in enumerate(_tasks(content, given), 1)]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{given} has several tasks named {', '.join(twice)}. Give each a name of its own.")
    return [dataclasses.replace(entry, data=_find(entry.data, path.parent)) for entry in entries]


def _folder() -> Any:
    return resources.files("lm_research.evaluation") / _SHIPPED


def _read(path: pathlib.Path) -> Any:
    if path.suffix == ".py":
        if kind(path) != FILE:
            raise ConfigError(f"{path} is {kind(path)}. Give a file.")
        with loading.locate_errors(path):
            return {"tasks": runpy.run_path(str(path.resolve())).get("TASKS")}
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{path} is no suite: one is a .yaml, .json or .py file.")
    return (read_json if path.suffix == ".json" else read_yaml)(path, Any, error=ConfigError)


def _tasks(content: Any, given: str) -> list[Any]:
    tasks = content.get("tasks") if isinstance(content, Mapping) else content
    if not isinstance(tasks, list) or not tasks:
        raise ConfigError(f"{given} lists no tasks. Give `tasks:` (Python: TASKS), a list with an entry for each.")
    return tasks


def _entry(fields: Any, number: int, given: str, kinds: Mapping[str, Any]) -> Entry:
    known = {field.name for field in dataclasses.fields(Entry)} - {"more"}
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{given}, task {number} is {short(fields)}, not keys with values. Fix it.")
    further = _task_keys() - known
    name = fields.get("name", number)
    where = f"{given}, task {name if isinstance(name, str) and len(name) <= _LONGEST_NAME else short(name)}"
    for key in fields:
        if key not in known | further:
            raise ConfigError(f"{where}: there is no key {short(key)}. {suggest(str(key), known | further)}")
    for key in ("name", "task", "data"):
        if not fields.get(key):
            raise ConfigError(f"{where} has no {key!r}. Add it.")
    values = {key: value for key, value in fields.items() if key in known}
    more = {key: value for key, value in fields.items() if key in further}
    labels = values.pop("labels", None)
    if labels:
        listed = labels.split(",") if isinstance(labels, str) else labels
        listed = check(listed, list[str | int | float], f"{where}: labels", error=ConfigError)
        values["labels"] = tuple(str(x).strip() for x in listed)
    for key, value in values.items():
        wanted, name = {"labels": (tuple, "list"), "max_length": (int, "whole number")}.get(key, (str, "text"))
        if type(value) is not wanted:
            raise ConfigError(f"{where}: {key} is {short(value)}, which is not a {name}. Fix it.")
    if not 0 <= values.get("max_length", 0) <= _LONGEST:
        raise ConfigError(f"{where}: max_length is {short(values['max_length'])}; it must be from 0 to {_LONGEST}.")
    if values["task"] not in kinds:
        raise ConfigError(f"{where}: there is no task {values['task']!r}. {suggest(values['task'], kinds)}")
    if not re.fullmatch(r"\w[\w.+-]*", values["name"]) or len(values["name"].encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"{where}: a name becomes a folder. Use up to {_LONGEST_NAME} letters, digits, dots, dashes and underscores alone."
        )
    if values.get("scored", "all") not in ("all", "shared"):
        raise ConfigError(f"{where}: scored is {values['scored']!r}; it is all or shared.")
    if not values["data"].startswith((_TFDS, "lines:")):
        path_of(values["data"], f"{where}: data")
    if values["task"] in TASKS:
        texts = {key: value for key, value in values.items() if key in _TASK_KEYS}
        try:
            resolve({"task": {"name": values["task"]} | more | texts})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if "problem_type" in TASKS.keys(values["task"]):
            values.setdefault("problem_type", TASKS.keys(values["task"])["problem_type"].default)
    return Entry(**values, more=more)


def _task_keys() -> set[str]:
    """Keys of all tasks, but for those of training."""
    return {key for name in TASKS for key in TASKS.keys(name).keys() - TASKS.make(name).for_training}


def _find(data: str, folder: pathlib.Path) -> str:
    beside = folder / data
    return str(beside) if not data.startswith(_TFDS) and kind(beside) else data
