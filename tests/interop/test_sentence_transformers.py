"""The files by which a model says how its states become embeddings."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from lm_research.errors import PretrainedError, UserError
from lm_research.interop.sentence_transformers import NATIVE, Embedding, load, save


@pytest.mark.parametrize("said", [Embedding("mean", True, 256), Embedding("cls", False), Embedding("last", True, 32)])
def test_there_and_back(said: Embedding, tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / NATIVE).write_bytes(said.dumps())
    save(tmp_path, said, 8)
    assert load(tmp_path) == load(tmp_path / "plain") == said


def test_a_directory_that_says_nothing(tmp_path: pathlib.Path) -> None:
    assert load(tmp_path) is None


def written(folder: pathlib.Path, pooling: dict[str, Any], *kinds: str) -> pathlib.Path:
    """A directory as versions 2 to 5 of sentence-transformers write it."""
    kinds = ("Transformer", "Pooling", *kinds)
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in zip(paths, kinds, strict=True)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


OLD = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
POOLINGS = {  # how versions 2 to 5, and 6, write it -> what it is
    "cls": (OLD | {"pooling_mode_cls_token": True}, "cls"),
    "mean": (OLD | {"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
    "last": (OLD | {"pooling_mode_lasttoken": True}, "last"),
    "last, 6": ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
    "mean, 6": ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
    "max": (OLD | {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
    "two": (OLD | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_pooling(case: str, tmp_path: pathlib.Path) -> None:
    config, expected = POOLINGS[case]
    said = load(written(tmp_path, config))
    assert said == Embedding(expected, normalize=False)
    assert said.supported == (expected in ("cls", "mean", "last"))
    if not said.supported:
        with pytest.raises(UserError, match="it is mean, cls or last"):
            said.check()


def test_what_cannot_be_computed_is_said(tmp_path: pathlib.Path) -> None:
    said = load(written(tmp_path, POOLINGS["mean"][0], "Dense", "Normalize"))
    assert said.normalize and not said.supported
    with pytest.raises(UserError, match="a Dense after the pooling, which is not supported"):
        said.check()


@pytest.mark.parametrize("content", ["{", "[1]", '[{"type": "a.Pooling"}]', '{"a": 1}'])
def test_damaged_files(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(PretrainedError, match="modules.json and what it names cannot be read"):
        load(tmp_path)
