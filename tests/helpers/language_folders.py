"""Tiny tokenizers that mark texts with their language, from language_goldens; expected values are from transformers."""

from __future__ import annotations

import base64
import functools
import json
import pathlib
from typing import Any

from lm_research.tokenizers.loading import load_tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / "tokenizers" / "language_goldens" / "languages.json"


@functools.cache
def goldens() -> dict[str, Any]:
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def write_family(folder: pathlib.Path, family: str, **config: Any) -> dict[str, Any]:
    """Write a family's tokenizer with more keys in its tokenizer_config.json; return its golden."""
    golden = goldens()["families"][family]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in golden["files"].items():
        (folder / name).write_bytes(base64.b64decode(text))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return golden


def open_family(folder: pathlib.Path, family: str) -> tuple[Any, dict[str, Any]]:
    """A family's tokenizer in the languages of its golden, and the golden."""
    golden = write_family(folder, family)
    return load_tokenizer(folder).in_languages(golden["source"], golden["target"]), golden
