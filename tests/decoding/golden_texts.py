"""Read goldens/*.json, which transformers generated with models whose weights follow a rule, and make those models."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from helpers.golden_models import Golden, write_checkpoint
from lm_research.pretrained import LanguageModel, from_pretrained

FOLDER = pathlib.Path(__file__).parent / "goldens"
NAMES = tuple(path.stem for path in sorted(FOLDER.glob("*.json")))


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def make_model(name: str, folder: pathlib.Path) -> LanguageModel:
    content = load(name)
    weights = {key: tuple(shape) for key, shape in content["weights"].items()}
    golden = Golden(name, content["kind"], content["family"], "", content["config"], weights, {}, {}, {}, {})
    write_checkpoint(folder, golden)
    return from_pretrained(folder)
