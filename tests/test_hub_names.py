"""Names on the Hugging Face hub in place of directories: nothing is downloaded, and every command explains how to get the model."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable

import pytest

import lm_research
from lm_research.errors import PretrainedError, UserError, not_downloaded
from lm_research.pipelines import pipeline

ADVICE = "Nothing is downloaded: if org/name is a model on the Hugging Face hub, download it with `hf download org/name --local-dir name`"
VERBS = {
    "generate": ("--model=org/name", "--prompt=x"),
    "predict": ("--model=org/name", "--task=fill-mask", "--input=rows.txt", "--output=out.jsonl"),
    "serve": ("--model=org/name",),
    "convert": ("--source=org/name", "--output=out", "--to=hf"),
    "evaluate": ("--model=org/name", "--suite=tasks.yaml", "--output=out"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory and an empty hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("ask", [lm_research.from_pretrained, lambda name: pipeline("fill-mask", model=name)])
@pytest.mark.parametrize("name", ["org/name", "https://huggingface.co/org/name", "hf://org/name"])
def test_python(ask: Callable, name: str) -> None:
    with pytest.raises(PretrainedError) as caught:
        ask(name)
    assert ADVICE in str(caught.value) and "snapshot_download('org/name', local_dir='name')" in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_commands(verb: str, capsys: pytest.CaptureFixture) -> None:
    pathlib.Path("rows.txt").write_text("a [MASK]\n")
    pathlib.Path("tasks.yaml").write_text("tasks:\n  - {name: t, task: tagging, data: rows.txt}\n")
    assert importlib.import_module(f"lm_research.{verb}").main(list(VERBS[verb])) == 2
    assert ADVICE in capsys.readouterr().err


def test_training(lab: Callable, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert lab.train(tmp_path / "run", "--config.train.init_from=org/name") == 2
    assert ADVICE in capsys.readouterr().err


def test_a_cached_copy_is_named(tmp_path: pathlib.Path) -> None:
    """Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    repository = tmp_path / "hub" / "models--org--name"
    for commit in ("aaa", "bbb"):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert not_downloaded("org/name").endswith(f"has org/name: give the path {repository / 'snapshots' / 'aaa'}")
    with pytest.raises(UserError, match="cache of the Hugging Face hub has org/name"):
        lm_research.from_pretrained("org/name")


@pytest.mark.parametrize("path", ["./org/name", "../name", "/org/name", "a/b/c", "~/name", "runs/typo"])
def test_other_paths_are_not_hub_names(path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "runs").mkdir()
    assert not_downloaded(path) == ""
