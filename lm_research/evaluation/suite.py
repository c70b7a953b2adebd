"""A suite: the tasks of an evaluation, from a YAML, JSON or Python file, or one that is included in the library.

    tasks:
      - name: sentiment              # name of its folder in the output
        task: classification         # a key of runner.KINDS
        data: dev.jsonl              # a file of records, or tfds:NAME@SPLIT
        text_key: review             # keys of config.task that specify how records are read
        metric: accuracy             # reported first; the default depends on the task

A Python file defines the same list as `TASKS`. Files are looked up next to the suite, then in the current directory.
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

_TFDS = "tfds:"
_MAX_LENGTH, _MAX_NAME_BYTES = 2**24, 100  # tokens of a text; bytes of a task's name
# Keys of an entry that config.task has as well.
_TASK_KEYS = ("text_key", "pair_key", "label_key", "problem_type", "label_separator", "metric")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One task of a suite.

    Attributes:
      name: name of its folder and of its row in tables.
      task: a key of runner.KINDS.
      data: source of records, as in config.task.train.
      metric: the metric that is reported first; "" is the task's default.
      text_key, pair_key, label_key, problem_type, label_separator: as in config.task.
      labels: the data's names of the model's classes, in the model's order; () uses the names in the model's config.
      max_length: maximum number of tokens of a text; 0 is that of the model's training, or its number of positions.
      good_key, bad_key: for minimal pairs: fields of the acceptable and of the other sentence.
      slice_key: a field; the main metric is also reported for each of its values, such as the phenomena of minimal
        pairs. "" reports none.
      scored: for minimal pairs with masked models: score "all" tokens, or only tokens that both sentences share ("shared",
        as in CrowS-Pairs).
      more: further keys of config.task in the suite.
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
    """Read the tasks of a suite.

    Args:
      given: a file, or the name of a suite that is included in the library.
      kinds: valid values of `task`.

    Raises:
      ConfigError: the suite is not valid; the message names the file, the task and the key.
    """
    path = path_of(given, "--suite")
    folder = resources.files("lm_research.evaluation") / "suites"
    included = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    if kind(path) not in (NOTHING, FOLDER):
        content = _read(path)
    elif given in included:
        content = parse_yaml(included[given].read_text(encoding="utf-8"), given, error=ConfigError)
    else:
        hint = suggest(given, included)
        raise ConfigError(f"--suite={given} is neither a file nor a suite that is included in the library. {hint}")
    entries = [_entry(fields, number, given, kinds) for number, fields in enumerate(_tasks(content, given), 1)]
    names = [entry.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{given} has several tasks named {', '.join(repeated)}. Give each task a unique name.")
    return [dataclasses.replace(entry, data=_resolve_data(entry.data, path.parent)) for entry in entries]


def _read(path: pathlib.Path) -> Any:
    if path.suffix == ".py":
        if kind(path) != FILE:
            raise ConfigError(f"{path} is {kind(path)}. Give a file.")
        with loading.locate_errors(path):
            return {"tasks": runpy.run_path(str(path.resolve())).get("TASKS")}
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{path} is not a suite: use a .yaml, .json or .py file.")
    return (read_json if path.suffix == ".json" else read_yaml)(path, Any, error=ConfigError)


def _tasks(content: Any, given: str) -> list[Any]:
    tasks = content.get("tasks") if isinstance(content, Mapping) else content
    if not isinstance(tasks, list) or not tasks:
        raise ConfigError(f"{given} lists no tasks. Add `tasks:` (Python: TASKS), a list with an entry for each task.")
    return tasks


def _entry(fields: Any, number: int, given: str, kinds: Mapping[str, Any]) -> Entry:
    entry_keys = {field.name for field in dataclasses.fields(Entry)} - {"more"}
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{given}, task {number} is {short(fields)}, not a mapping of keys to values. Fix it.")
    more_keys = _task_keys() - entry_keys
    name = fields.get("name", number)
    where = f"{given}, task {name if isinstance(name, str) and len(name) <= _MAX_NAME_BYTES else short(name)}"
    for key in fields:
        if key not in entry_keys | more_keys:
            raise ConfigError(f"{where}: there is no key {short(key)}. {suggest(str(key), entry_keys | more_keys)}")
    for key in ("name", "task", "data"):
        if not fields.get(key):
            raise ConfigError(f"{where} has no {key!r}. Add it.")
    values = {key: value for key, value in fields.items() if key in entry_keys}
    more = {key: value for key, value in fields.items() if key in more_keys}
    labels = values.pop("labels", None)
    if labels:
        listed = labels.split(",") if isinstance(labels, str) else labels
        listed = check(listed, list[str | int | float], f"{where}: labels", error=ConfigError)
        values["labels"] = tuple(str(x).strip() for x in listed)
    for key, value in values.items():
        expected, name = {"labels": (tuple, "list"), "max_length": (int, "whole number")}.get(key, (str, "text"))
        if type(value) is not expected:
            raise ConfigError(f"{where}: {key} is {short(value)}, which is not a {name}. Fix it.")
    if not 0 <= values.get("max_length", 0) <= _MAX_LENGTH:
        raise ConfigError(f"{where}: max_length is {short(values['max_length'])}; it must be from 0 to {_MAX_LENGTH}.")
    if values["task"] not in kinds:
        raise ConfigError(f"{where}: there is no task {values['task']!r}. {suggest(values['task'], kinds)}")
    if not re.fullmatch(r"\w[\w.+-]*", values["name"]) or len(values["name"].encode()) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"{where}: the name becomes a folder. Use only letters, digits, dots, dashes and underscores, at most {_MAX_NAME_BYTES}."
        )
    if values.get("scored", "all") not in ("all", "shared"):
        raise ConfigError(f"{where}: scored is {values['scored']!r}; it must be all or shared.")
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
    """Return the keys of all tasks that are not for training only."""
    return {key for name in TASKS for key in TASKS.keys(name).keys() - TASKS.make(name).for_training}


def _resolve_data(data: str, folder: pathlib.Path) -> str:
    next_to_suite = folder / data
    return str(next_to_suite) if not data.startswith(_TFDS) and kind(next_to_suite) else data
