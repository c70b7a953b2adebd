"""A tiny directory like opus-mt's, from marian_goldens; expected values are from transformers."""

from __future__ import annotations

import base64
import functools
import json
import pathlib
from typing import Any

import safetensors.numpy

from helpers.golden_models import golden_tensor

GOLDEN = pathlib.Path(__file__).parents[1] / "tokenizers" / "marian_goldens" / "opus.json"


@functools.cache
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def files() -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in golden()["files"].items()}


def write_opus(folder: pathlib.Path) -> pathlib.Path:
    """The directory: tokenizer, configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)
    tensors = {name: golden_tensor(name, tuple(shape)) for name, shape in golden()["weights"].items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
