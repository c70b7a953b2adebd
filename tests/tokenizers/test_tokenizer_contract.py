"""Every tokenizer class offers exactly what `Tokenizer` declares, and no caller probes for more."""

from __future__ import annotations

import ast
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.hf_folders import write_folder
from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.inputs import bert_rows
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.numbered_pieces import NumberedPieces
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "lm_research"
OWN = {  # public members that a class adds to the contract
    SentencePieceTokenizer: {"proto", "load", "parse", "train"},
    HFTokenizer: {"backend"},
    NumberedPieces: set(),
}


class Letters(Tokenizer):
    """A user's own tokenizer: ids 3 to 28 are letters, 29 is a space."""

    roles = {"cls": 0, "sep": 1, "pad": 2, "eos": 1}
    size = 30

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[29 if letter == " " else ord(letter) - ord("a") + 3 for letter in text] for text in texts]

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(" " if token == 29 else chr(token - 3 + ord("a")) for token in ids if 3 <= token < 30)


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_a_kind_has_no_public_member_that_is_not_declared(kind: type[Tokenizer], tmp_path: pathlib.Path) -> None:
    if kind is SentencePieceTokenizer:
        config = TokenizerConfig(type="bpe", vocab_size=300)
        tokenizer = kind.train(["a few words", "and more of them"], config, tmp_path / "tokenizer.model")
        assert vars(pickle.loads(pickle.dumps(tokenizer))).keys() >= {"roles", "size"}
    else:
        tokenizer = load_tokenizer(write_folder(tmp_path, "bert")) if kind is HFTokenizer else None
    public = {name for name in (*dir(kind), *(vars(tokenizer) if tokenizer else ())) if not name.startswith("_")}
    assert public - set(dir(Tokenizer)) - set(Tokenizer.__annotations__) == OWN[kind]


def test_a_custom_tokenizer_needs_two_methods() -> None:
    tokenizer = Letters()
    assert tokenizer.encode("ab c") == [3, 4, 29, 5]
    assert tokenizer.frame == ((), (1,)) == tokenizer.target_frame
    assert tokenizer.special_ids.tolist() == [0, 1, 2] and tokenizer.token_id("b") == 4
    assert tokenizer.token_bytes.tolist() == [0] * 3 + [1] * 27
    assert np.flatnonzero(tokenizer.starts_word).tolist() == [29]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    tokenizer.uses_types = True
    found = tokenizer(["ab", "c"], ["c", "b"], padding=True)
    assert found["input_ids"].tolist() == [[0, 3, 4, 1, 5, 1], [0, 5, 1, 4, 1, 2]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    with pytest.raises(TokenizerError, match="does not report character offsets"):
        tokenizer("ab", return_offsets=True)
    with pytest.raises(TokenizerError, match="no mask token"):
        _ = tokenizer.mask_id
    with pytest.raises(TokenizerError, match="Set it to 5 or more"):
        tokenizer("ab", "c", truncation=True, max_length=4)


@pytest.mark.parametrize(
    ("limit", "rows"),
    [(None, ("abcd", "xy")), (8, ("abc", "xy")), (7, ("ab", "xy")), (6, ("a", "xy")), (5, ("a", "x"))],
)
def test_the_longer_text_of_a_pair_is_cut_first(limit: int | None, rows: tuple[str, str]) -> None:
    """One token at a time from the longer one; of equal ones from the first."""

    def ids(text):
        return [ord(letter) for letter in text]

    (row,) = bert_rows([ids("abcd")], [ids("xy")], (0, 1), limit)
    assert row.ids == [0, *ids(rows[0]), 1, *ids(rows[1]), 1]


def test_decoding_includes_special_tokens_on_request(tmp_path: pathlib.Path) -> None:
    config = TokenizerConfig(type="bpe", vocab_size=300, keep_newlines=True)
    tokenizer = SentencePieceTokenizer.train(["a few words", "and more of them"], config, tmp_path / "tokenizer.model")
    ids = [tokenizer.cls_id, *tokenizer.encode("few words"), tokenizer.sep_id, tokenizer.mask_id]
    assert tokenizer.decode(ids) == "few words"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[CLS]few words[SEP][MASK]"


def test_no_caller_probes_a_tokenizer() -> None:
    """hasattr, getattr, callable and isinstance of something called a tokenizer."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("hasattr", "getattr", "callable", "isinstance") and node.args:
                    what = ast.unparse(node.args[0])
                    if what.endswith("tokenizer"):
                        found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.func.id}({what})")
    assert found == []
