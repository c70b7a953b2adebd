"""Tokenizers of DeBERTa and MPNet from their vocabulary files: DeBERTa-v2's against sentencepiece, the others by hand."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest

from lm_research.tokenizers.loading import load_tokenizer

GOLDEN = json.loads((pathlib.Path(__file__).parent / "deberta_goldens" / "deberta.json").read_text(encoding="utf-8"))
CLS, SEP = 1, 2


@pytest.mark.parametrize("named", [True, False])
def test_deberta_v2_encodes_as_sentencepiece(named: bool, tmp_path: pathlib.Path) -> None:
    """The released directories have spm.model, and a tokenizer_config.json without a class; the mask follows the last piece."""
    (tmp_path / "spm.model").write_bytes(base64.b64decode(GOLDEN["model"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}' if named else "{}")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.size == GOLDEN["size"] + 1 and tokenizer.roles["mask"] == GOLDEN["size"]
    for text, ids in zip(GOLDEN["texts"], GOLDEN["ids"], strict=True):
        assert tokenizer(text)["input_ids"][0].tolist() == [CLS, *ids, SEP], text
    first, second = GOLDEN["ids"][0], GOLDEN["ids"][1]
    pair = tokenizer(GOLDEN["texts"][0], GOLDEN["texts"][1])
    assert pair["input_ids"][0].tolist() == [CLS, *first, SEP, *second, SEP]
    assert pair["token_type_ids"][0].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    masked = tokenizer("the [MASK]", add_special_tokens=False)["input_ids"][0].tolist()
    assert masked[-1] == GOLDEN["size"]


def test_deberta_wraps_pieces_of_bytes_as_bert(tmp_path: pathlib.Path) -> None:
    """\u0120 is the byte of a space; the mask absorbs the space before it."""
    pieces = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "a", "b", "\u0120", "\u0120a", "ab", "[MASK]"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 a\na b\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "deberta"}')
    tokenizer = load_tokenizer(tmp_path)
    row = tokenizer("ab a [MASK]", "b")
    assert row["input_ids"][0].tolist() == [0, 8, 7, 9, 2, 5, 2]
    assert row["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_mpnet_wraps_wordpieces_as_roberta(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vocab.txt").write_text("<s>\n<pad>\n</s>\n[UNK]\nthe\ncat\n##s\n<mask>\n")
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}')
    tokenizer = load_tokenizer(tmp_path)
    row = tokenizer("The cats <mask>", "dog")
    assert row["input_ids"][0].tolist() == [0, 4, 5, 6, 7, 2, 2, 3, 2]
    assert "token_type_ids" not in row
