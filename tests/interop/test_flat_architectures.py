"""Native directories from when all layers were alike: flat_architectures.json holds the content of their model.json.

Written by `dataclasses.asdict` of the architectures at commit 3e9a067, of the golden models of the same names.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

import lm_research
from helpers.golden_models import FOLDER, load_golden, write_checkpoint
from lm_research.errors import PretrainedError

FLAT: dict[str, dict[str, Any]] = json.loads(
    (pathlib.Path(__file__).parent / "flat_architectures.json").read_text(encoding="utf-8")
)


def native(name: str, folder: pathlib.Path) -> tuple[Any, pathlib.Path]:
    """A golden model and its native directory."""
    write_checkpoint(folder / "hf", load_golden(FOLDER / f"{name}.npz"))
    lm = lm_research.from_pretrained(folder / "hf")
    lm.save_native(folder / "native")
    return lm, folder / "native"


def change(directory: pathlib.Path, architecture: dict[str, Any]) -> None:
    content = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps(content | {"architecture": architecture}))


@pytest.mark.parametrize("name", FLAT)
def test_they_are_read_and_written_in_the_current_format(name: str, tmp_path: pathlib.Path) -> None:
    lm, directory = native(name, tmp_path)
    change(directory, FLAT[name])
    again = lm_research.from_pretrained(directory)
    expected = lm.definition.arch.replace(
        frozen_padding=False
    )  # they trained padding, so that their runs resume as they began
    assert again.definition.arch == expected
    again.save_native(tmp_path / "again")
    stored = json.loads((tmp_path / "again" / "model.json").read_text())["architecture"]
    assert "norm" not in stored and stored["layers"][0]["residual"] == FLAT[name]["norm"]
    assert lm_research.from_pretrained(tmp_path / "again").definition.arch == expected
    kinds = [spec.attention for spec in again.definition.arch.layer_specs]
    first = FLAT[name]["window_from"] if FLAT[name]["window"] else len(kinds)
    assert kinds == ["full"] * first + ["window"] * (len(kinds) - first)
    assert again.definition.arch.layers[-1].window == FLAT[name]["window"]


def test_their_values_are_still_checked(tmp_path: pathlib.Path) -> None:
    _, directory = native("mistral_causal", tmp_path)
    for field, value, words in (
        ("norm", "before", "layers"),
        ("num_layers", 10**9, "num_layers"),
        ("window", -4, "window"),
        ("gated", "yes", "gated"),
    ):
        change(directory, FLAT["mistral_causal"] | {field: value})
        with pytest.raises(PretrainedError, match=words):
            lm_research.from_pretrained(directory)
