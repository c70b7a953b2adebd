"""Blenderbot-small's tokenizer, against transformers (subword_goldens/make_goldens.py)."""

from __future__ import annotations

import json
import pathlib
import pickle

import pytest

from lm_research.errors import UnsupportedTokenizerError
from lm_research.tokenizers.loading import tokenizer_from_files

GOLDEN = json.loads((pathlib.Path(__file__).parent / "subword_goldens" / "blenderbot_small.json").read_text("utf-8"))
FILES = {name: content.encode() for name, content in GOLDEN["files"].items()}


def test_ids_and_texts_are_those_of_transformers() -> None:
    tokenizer = tokenizer_from_files(FILES, "here")
    for number, text in enumerate(GOLDEN["texts"]):
        ids = GOLDEN["ids"][number]
        assert tokenizer(text)["input_ids"][0].tolist() == ids, text
        assert tokenizer.decode(ids) == GOLDEN["decoded"][0][number]
        assert tokenizer.decode(ids, skip_special_tokens=False) == GOLDEN["decoded"][1][number]
    assert {role: tokenizer.token_name(one) for role, one in tokenizer.roles.items() if role in ("bos", "eos", "pad", "unk")} == {
        "bos": "__start__", "eos": "__end__", "pad": "__null__", "unk": "__unk__",
    }  # fmt: skip


def test_saved_files_and_pickles_make_the_same_tokenizer() -> None:
    tokenizer = tokenizer_from_files(FILES, "here")
    for again in (tokenizer_from_files(tokenizer.files, "there"), pickle.loads(pickle.dumps(tokenizer))):
        assert again.digest == tokenizer.digest and again.encode(GOLDEN["texts"][0]) == tokenizer.encode(
            GOLDEN["texts"][0]
        )
    # "[MASK]"-like tokens are plain text here, as in other tokenizers.
    assert tokenizer.encode("__start__") != tokenizer("__start__")["input_ids"][0].tolist()


def test_a_model_type_names_the_class_and_tokenizer_json_alone_is_refused() -> None:
    config = {"config.json": b'{"model_type": "blenderbot-small"}'}
    files = {name: content for name, content in FILES.items() if name != "tokenizer_config.json"} | config
    assert tokenizer_from_files(files, "here").encode("hello") == tokenizer_from_files(FILES, "here").encode("hello")
    with pytest.raises(UnsupportedTokenizerError, match="needs vocab.json and merges.txt"):
        tokenizer_from_files(config | {"tokenizer.json": b"{}"}, "here")
