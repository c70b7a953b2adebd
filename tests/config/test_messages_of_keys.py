"""The exact messages for values of the wrong form."""

from __future__ import annotations

import pathlib

import pytest

from lm_research import cli
from lm_research.config import find, loading, resolve
from lm_research.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.num_steps", "3.0", r"of type int\. Write 3\. It means"),
        ("train.num_steps", "3.5", r"of type int\. It means"),
        ("train.num_steps", "inf", r"of type int\. It means"),
        ("model.scan_layers", "yes", "true or false"),
    ],
)
def test_hints(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(key).parse(text)


@pytest.mark.parametrize(("body", "hint"), [("config = default_config()", True), ("return 5", False)])
def test_a_config_file_that_returns_no_config(body: str, hint: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "one.py"
    path.write_text(f"from lm_research.config import default_config\ndef get_config():\n    {body}\n")
    with pytest.raises(ConfigError, match="not a ConfigDict") as caught:
        loading.load(str(path))
    assert ("Is `return config` missing?" in str(caught.value)) == hint


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("optimizer.beta1", ("0", "0.999999"), ("-0.0001", "0.9999999")),
        ("data.num_workers", ("0", "1024"), ("-1", "1025")),
    ],
)
def test_both_ends_of_a_range_are_in_it(key: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    base = [f"--config={ROOT}/configs/quickstart.py", "--workdir=w"]
    for value in inside:
        cli.parse([*base, f"--config.{key}={value}"])
    for value in outside:
        with pytest.raises(ConfigError, match=key):
            cli.parse([*base, f"--config.{key}={value}"])


def test_a_limit_of_words_that_a_task_would_not_count_is_refused() -> None:
    sections = {"task": {"name": "classification", "train": "t.jsonl", "validation": "v.jsonl"}}
    resolve(sections)
    with pytest.raises(ConfigError, match=r"data.max_words=10,000,000 .* task classification reads records"):
        resolve(sections | {"data": {"max_words": 10_000_000}})
