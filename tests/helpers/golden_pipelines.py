"""Write the small models that goldens/pipelines.json describes."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from helpers.golden_models import Golden, write_checkpoint

CONTENT = json.loads((pathlib.Path(__file__).parents[1] / "pipelines" / "goldens" / "pipelines.json").read_text())
MODELS: dict[str, Any] = CONTENT["models"]


def write_model(name: str, folder: pathlib.Path) -> pathlib.Path:
    entry = MODELS[name]
    weights = {key: tuple(shape) for key, shape in entry["weights"].items()}
    write_checkpoint(folder, Golden("", entry["kind"], "bert", "", entry["config"], weights, {}, {}, {}, {}))
    write_vocabulary(folder)
    return folder


def write_vocabulary(folder: pathlib.Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(CONTENT["vocab"]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
