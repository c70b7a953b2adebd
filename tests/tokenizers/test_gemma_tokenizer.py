"""Gemma's tokenizer against transformers and sentencepiece on one tiny vocabulary (gemma_goldens/make_goldens.py)."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest

from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.loading import load_tokenizer

GOLDEN = json.loads((pathlib.Path(__file__).parent / "gemma_goldens" / "gemma.json").read_text(encoding="utf-8"))
MODEL = base64.b64decode(GOLDEN["files"]["tokenizer.model"])
# Texts with the names of special or user-defined pieces, which transformers matches first, and sentencepiece by the longest piece.
DEPARTS = {
    "x <unk> [UNK]",
    "     deep\n\n\n\n\nend\n",
    "x <b>the</b> <unused0> 12345 <bos>In",
    "\u2581\u2581 and  \u2581 ",
}


@pytest.fixture(params=["sentencepiece", "tokenizer.json", "model_type"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> HFTokenizer:
    """The tokenizer from each form of its files: as released, as saved by transformers, and with no other sign than the model's type."""
    if request.param == "tokenizer.json":
        files = {name: text.encode() for name, text in GOLDEN["saved"].items()}
    else:
        files = {name: base64.b64decode(content) for name, content in GOLDEN["files"].items()}
    if request.param == "model_type":
        del files["tokenizer_config.json"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = load_tokenizer(tmp_path)
    assert isinstance(found, HFTokenizer)
    return found


def test_texts_are_encoded_as_by_transformers(tokenizer: HFTokenizer) -> None:
    assert tokenizer.size == GOLDEN["size"]
    assert {role: tokenizer.roles[role] for role in GOLDEN["roles"]} == GOLDEN["roles"]
    for text, ids, decoded, skipped in zip(
        *(GOLDEN[key] for key in ("texts", "ids", "decoded", "skipped")), strict=True
    ):
        assert tokenizer(text)["input_ids"][0].tolist() == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == decoded
        assert tokenizer.decode(ids) == skipped
    padded = tokenizer(["In the beginning", "God"], padding=True)
    assert {name: padded[name].tolist() for name in GOLDEN["padded"]} == GOLDEN["padded"]


def test_plain_texts_are_encoded_as_by_sentencepiece(tokenizer: HFTokenizer) -> None:
    for text, ids in zip(GOLDEN["texts"], GOLDEN["sentencepiece"], strict=True):
        assert text in DEPARTS or tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist() == ids, text
    assert DEPARTS < set(GOLDEN["texts"])
