"""Tiny folders of published classes for tests of tokenizers, from goldens/hf_tokenizers.json."""

from __future__ import annotations

import base64
import functools
import json
import pathlib
from typing import Any

GOLDENS = pathlib.Path(__file__).parents[1] / "tokenizers" / "goldens" / "hf_tokenizers.json"


@functools.cache
def goldens() -> dict[str, Any]:
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def files_of(family: str) -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in goldens()["families"][family]["files"].items()}


def write_folder(folder: pathlib.Path, family: str, **more: Any) -> pathlib.Path:
    """The family's folder, with additional files: name with __ for a dot -> a JSON value, or None to leave one out."""
    files = files_of(family)
    for name, value in more.items():
        files[name.replace("__", ".")] = None if value is None else json.dumps(value).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder
